// Outlines of splats over the picture, and the nine numbers of the one that is pointed at.
"use strict";
((splatcats) => {
  const SVG = "http://www.w3.org/2000/svg";
  const LABELS = { u: "right", v: "down", kx: "1/width", ky: "1/height", rho: "slant",
                   r: "red", g: "green", b: "blue", d: "depth" };

  splatcats.Outlines = class Outlines {
    constructor(svg, readout, catalogue) {
      Object.assign(this, { svg, readout, catalogue, hot: null });
      this.group = element("g");
      this.every = element("g", { class: "every" });
      this.near = element("g", { class: "near" });
      this.group.append(this.every, this.near);
      svg.append(this.group);
      this.describe(null);
    }

    take(field) {
      this.field = field;
      this.ranges = field.ranges();
      this.point(null);
      if (this.shown) this.showAll(true);
    }

    // Outline every splat of the picture, or none.
    showAll(shown) {
      this.shown = shown;
      const { field } = this;
      const places = [];
      for (let row = 0; shown && field && row < field.rows; row++)
        for (let column = 0; column < field.columns; column++) places.push(...patch(field, row, column));
      this.every.replaceChildren(...places.map((place) => ellipse(field, place)));
    }

    // Follow the camera; strokes keep their width since CSS exempts them from scaling.
    follow(camera) {
      const ratio = this.svg.clientWidth / camera.width || 1; // device pixels to CSS pixels
      const { origin, scale } = camera;
      const values = [scale * ratio, 0, 0, scale * ratio, origin.x * ratio, origin.y * ratio];
      this.group.setAttribute("transform", `matrix(${values.join(" ")})`);
    }

    // Outline the splat `found` by Field.owner, and faintly its companions at home in the same patch; null: none.
    point(found) {
      const same = found && this.hot && ["row", "column", "number"].every((name) => found[name] === this.hot[name]);
      this.hot = found;
      this.describe(found);
      if (same) return;
      this.near.replaceChildren();
      if (!found) return;
      const { field } = this;
      const box = { class: "home", x: found.column, y: found.row, width: 1, height: 1 };
      const others = patch(field, found.row, found.column).map((place) => ellipse(field, place));
      const halo = ellipse(field, found), hot = ellipse(field, found);
      halo.setAttribute("class", "halo");
      hot.setAttribute("class", "hot");
      this.near.append(element("rect", box), ...others, halo, hot);
    }

    describe(found) {
      const where = this.readout.querySelector(".where");
      const values = found && this.field.splat(found);
      this.readout.classList.toggle("empty", !found);
      where.textContent = found
        ? `Row ${found.row + 1}, column ${found.column + 1}, splat ${found.number + 1}: ` +
          `${Math.round(found.share * 100)}\u00a0% of the weight`
        : "Point at the picture to see the splat that is there.";
      const rows = Object.keys(LABELS).map((name) => {
        const term = document.createElement("dt"), label = document.createElement("small");
        const value = document.createElement("dd"), item = document.createElement("div");
        term.textContent = name === "rho" ? "ρ" : name;
        label.textContent = LABELS[name];
        value.textContent = values ? values[name].toFixed(3).replace("-", "−") : "–";
        item.title = this.catalogue.meanings[name];
        item.append(term, label, value);
        return item;
      });
      this.readout.querySelector("dl").replaceChildren(...rows);
      this.readout.style.setProperty("--splat", values ? this.dot(values) : "transparent");
    }

    // The colour of a splat as the view Blobs shows it: most lie beyond what a screen shows.
    dot({ r, g, b }) {
      const [low, high] = this.ranges.colour;
      const level = (value) => Math.round(255 * (0.15 + 0.85 * (value - low) / Math.max(high - low, 1e-6)));
      return `rgb(${level(r)} ${level(g)} ${level(b)})`;
    }
  };

  function patch(field, row, column) {
    return Array.from({ length: field.perPatch }, (_, number) => ({ row, column, number }));
  }

  function ellipse(field, place) {
    const { cx, cy, rx, ry, angle } = field.outline(place);
    return element("ellipse", { cx, cy, rx, ry, transform: `rotate(${angle} ${cx} ${cy})` });
  }

  function element(name, attributes = {}) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
})((window.splatcats ??= {}));
