// One cat: joins splats, camera, painter, outlines and controls, and draws when something has changed.
"use strict";
((splatcats) => {
  const STEP = 1.6; // of the zoom buttons
  const SETTLE_MS = 140; // without movement, after which all pixels are drawn
  const SLOW_MS = 45; // a frame; slower ones are drawn with fewer pixels while something moves
  const COARSEST = 0.25;
  const find = (selector) => document.querySelector(selector);

  splatcats.Viewer = class Viewer {
    constructor(catalogue) {
      Object.assign(this, { catalogue, state: splatcats.initialState(catalogue), fineness: 1, lastFrame: null });
      this.camera = new splatcats.Camera(catalogue);
      this.outlines = new splatcats.Outlines(find("#outlines"), find("#readout"), catalogue);
      this.controls = new splatcats.Controls(catalogue, {
        change: (name, value) => this.set({ [name]: value }),
        run: (command) => this.run(command),
      });
      splatcats.listen(find("#stage"), this.camera, {
        moved: () => this.moved(),
        point: (place) => this.point(place),
        leave: () => this.point(null),
      });
      new ResizeObserver(() => this.resize()).observe(find("#stage"));
      window.addEventListener("resize", () => this.resize()); // to a screen of another density
      find("#canvas").addEventListener("webglcontextrestored", () => this.redraw());
    }

    get open() {
      return this.state.cat !== null;
    }

    // Show what an address says: a cat, or none.
    async show(state) {
      const before = this.state.cat;
      this.state = state;
      document.title = this.open ? `Cat ${state.cat} · ${this.catalogue.title}` : this.catalogue.title;
      this.change(before);
      if (!this.open) return;
      find("#stage").setAttribute("aria-busy", true);
      this.resize();
      this.camera.goTo(state);
      this.controls.show(state);
      if (state.cat !== before) await this.load(state.cat);
      this.outlines.showAll(this.state.outlines);
      this.redraw();
    }

    // From the sheet to a cat or back to the same place on the sheet.
    change(before) {
      if (!find("#sheet").hidden) this.scrolled = window.scrollY;
      find("#viewer").hidden = !this.open;
      find("#sheet").hidden = this.open;
      if (this.open && before === null) find("#stage").focus();
      if (!this.open && before !== null) {
        find(`[data-cat="${before}"]`).focus({ preventScroll: true });
        window.scrollTo(0, this.scrolled);
      }
    }

    async load(cat) {
      this.field = null;
      this.outlines.point(null);
      this.notice("");
      try {
        const field = await splatcats.load(this.catalogue, cat);
        if (cat !== this.state.cat) return; // another was chosen meanwhile
        this.painter ??= new splatcats.Painter(find("#canvas"));
        this.painter.take(field);
        this.field = field;
        this.outlines.take(field);
        for (const near of [this.neighbour(1), this.neighbour(-1)]) splatcats.load(this.catalogue, near).catch(() => {});
      } catch (error) {
        if (cat !== this.state.cat) return;
        this.notice(error.message);
        find("#stage").setAttribute("aria-busy", false); // nothing will be drawn
      }
    }

    notice(text) {
      find("#notice").textContent = text;
      find("#notice").hidden = !text;
      find("#canvas").hidden = Boolean(text);
    }

    neighbour(step) {
      const { cats } = this.catalogue;
      return cats[(cats.indexOf(this.state.cat) + step + cats.length) % cats.length];
    }

    // Not by location.hash: its event comes later, and a frame drawn meanwhile would write the old address back.
    goTo(state) {
      history.pushState(null, "", splatcats.writeAddress(this.catalogue, state));
      this.show(state);
    }

    turn(step) {
      this.goTo({ ...this.state, cat: this.neighbour(step) });
    }

    leave() {
      this.goTo(splatcats.initialState(this.catalogue));
    }

    set(changes) {
      Object.assign(this.state, changes);
      this.controls.show(this.state);
      if ("outlines" in changes) this.outlines.showAll(changes.outlines);
      this.changed();
    }

    cycle(name) {
      const values = splatcats.CHOICES[name].map(({ value }) => value);
      this.set({ [name]: values[(values.indexOf(this.state[name]) + 1) % values.length] });
    }

    run(command) {
      const { camera } = this;
      if (command === "in") camera.glideZoom(STEP);
      if (command === "out") camera.glideZoom(1 / STEP);
      if (command === "next") return this.turn(1);
      if (command === "previous") return this.turn(-1);
      if (command === "leave") return this.leave();
      if (command === "fit") camera.glideZoom(1 / camera.zoom);
      if (command === "outlines") return this.set({ outlines: !this.state.outlines });
      if (command === "save") return this.save();
      if (command === "help") return splatcats.openHelp();
      this.moved();
    }

    // By fractions of the stage's smaller side.
    pan(x, y) {
      const side = Math.min(this.camera.width, this.camera.height);
      this.camera.glidePan(x * side, y * side);
      this.moved();
    }

    point(place) {
      this.pointed = place;
      if (!this.field) return;
      const at = place && this.camera.toPatches(place.x, place.y);
      this.outlines.point(at && this.field.owner(at.x, at.y, this.state.neighbourhood));
    }

    save() {
      if (!this.field) return;
      this.drawn = null; // what is on the screen cannot be read; what has been drawn just now can
      this.paint(1);
      find("#canvas").toBlob((blob) => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(blob);
        link.download = `cat-${this.state.cat}-${this.state.view}.png`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
      });
    }

    resize() {
      const box = find("#stage").getBoundingClientRect();
      if (!box.width) return; // hidden
      // As browsers snap boxes to device pixels, so that a pixel of the canvas is one of the screen.
      const snapped = (from, to) => Math.round(to * devicePixelRatio) - Math.round(from * devicePixelRatio);
      this.camera.resize(snapped(box.left, box.right), snapped(box.top, box.bottom));
      this.changed();
    }

    moved() {
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.camera.glide(Infinity);
      this.lastMove = performance.now();
      this.changed();
    }

    redraw() {
      this.drawn = null;
      this.changed();
    }

    changed() {
      this.frame ??= requestAnimationFrame((now) => this.draw(now));
    }

    draw(now) {
      this.frame = null;
      if (!this.open || !this.field) return;
      const { camera, state } = this;
      const passed = this.lastFrame === null ? 16 : now - this.lastFrame;
      this.lastFrame = null;
      if (camera.gliding) {
        camera.glide(passed);
        this.lastMove = now;
        if (this.pointed) this.point(this.pointed);
      }
      const moving = now - (this.lastMove ?? -Infinity) < SETTLE_MS;
      if (moving) {
        if (passed > SLOW_MS) this.fineness = Math.max(COARSEST, this.fineness / 2);
        this.lastFrame = now;
        this.changed();
      } else this.fineness = Math.min(1, 2 * this.fineness); // the next movement may be faster
      const { zoom, x, y } = camera;
      Object.assign(state, { zoom, x, y });
      this.paint(moving ? this.fineness : 1);
      this.outlines.follow(camera);
      this.controls.follow(camera);
      if (moving) return;
      history.replaceState(null, "", splatcats.writeAddress(this.catalogue, state));
      find("#stage").setAttribute("aria-busy", false);
    }

    // Draw, unless exactly this is what was drawn last.
    paint(fineness) {
      const { camera, state } = this;
      const wanted = JSON.stringify([state, camera.width, camera.height, fineness]);
      if (wanted !== this.drawn) this.painter.draw(camera, state, fineness);
      this.drawn = wanted;
    }
  };
})((window.splatcats ??= {}));
