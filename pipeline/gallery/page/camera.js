// What part of the picture the stage shows: centre in fractions of the picture, zoom 1 when all of it fits.
"use strict";
((splatcats) => {
  const DEEPEST = 256;
  const GLIDE_MS = 70; // time in which a movement does 63 % of what is left of it

  splatcats.Camera = class Camera {
    constructor({ rows, columns }) {
      Object.assign(this, { rows, columns, x: 0.5, y: 0.5, zoom: 1, width: 1, height: 1 });
      this.stop();
    }

    // Size of the stage in device pixels.
    resize(width, height) {
      Object.assign(this, { width, height });
      this.clamp();
    }

    goTo({ x, y, zoom }) {
      Object.assign(this, { x, y, zoom });
      this.stop();
      this.clamp();
    }

    // Device pixels a patch.
    get scale() {
      // Whole pixels when all of the picture fits, so that its edges are sharp.
      const fitted = Math.max(1, Math.floor(Math.min(this.width, (this.height * this.columns) / this.rows)));
      return (fitted / this.columns) * this.zoom;
    }

    // Where the picture's top left corner is, in device pixels from the stage's.
    get origin() {
      const place = (size, extent, centre) =>
        extent <= size ? Math.floor((size - extent) / 2) : size / 2 - centre * extent;
      const { scale } = this;
      return {
        x: place(this.width, this.columns * scale, this.x),
        y: place(this.height, this.rows * scale, this.y),
      };
    }

    // Device pixels to patches.
    toPatches(px, py) {
      const { origin, scale } = this;
      return { x: (px - origin.x) / scale, y: (py - origin.y) / scale };
    }

    // The part in sight, in fractions of the picture.
    get region() {
      const from = this.toPatches(0, 0), to = this.toPatches(this.width, this.height);
      const fraction = (value, patches) => Math.min(1, Math.max(0, value / patches));
      return {
        x0: fraction(from.x, this.columns),
        y0: fraction(from.y, this.rows),
        x1: fraction(to.x, this.columns),
        y1: fraction(to.y, this.rows),
      };
    }

    panBy(dx, dy) {
      const { scale } = this;
      this.x -= dx / (this.columns * scale);
      this.y -= dy / (this.rows * scale);
      this.clamp();
    }

    // The place under (px, py) stays there.
    zoomBy(factor, px, py) {
      const before = this.toPatches(px, py);
      this.zoom = Math.min(DEEPEST, Math.max(1, this.zoom * factor));
      const { scale } = this;
      this.x = (before.x - (px - this.width / 2) / scale) / this.columns;
      this.y = (before.y - (py - this.height / 2) / scale) / this.rows;
      this.clamp();
    }

    // No further than the picture's edges; centred where the picture is smaller than the stage.
    clamp() {
      this.zoom = Math.min(DEEPEST, Math.max(1, this.zoom));
      const within = (centre, size, extent) => {
        const half = Math.min(0.5, size / extent / 2);
        return Math.min(1 - half, Math.max(half, centre));
      };
      const { scale } = this;
      this.x = within(this.x, this.width, this.columns * scale);
      this.y = within(this.y, this.height, this.rows * scale);
    }

    // The same as zoomBy and panBy, spread over the next frames.
    glideZoom(factor, px = this.width / 2, py = this.height / 2) {
      Object.assign(this.left, { log: this.left.log + Math.log(factor), px, py });
    }

    glidePan(dx, dy) {
      this.left.dx += dx;
      this.left.dy += dy;
    }

    stop() {
      this.left = { log: 0, px: 0, py: 0, dx: 0, dy: 0 };
    }

    get gliding() {
      return this.left.log !== 0 || this.left.dx !== 0 || this.left.dy !== 0;
    }

    // Move on by `ms` milliseconds of a glide; Infinity ends it.
    glide(ms) {
      const { left } = this;
      const nearlyThere = Math.abs(left.log) < 1e-3 && Math.hypot(left.dx, left.dy) < 0.5;
      const share = nearlyThere ? 1 : 1 - Math.exp(-ms / GLIDE_MS);
      const part = { log: left.log * share, dx: left.dx * share, dy: left.dy * share };
      if (part.log) this.zoomBy(Math.exp(part.log), left.px, left.py);
      if (part.dx || part.dy) this.panBy(part.dx, part.dy);
      if (share === 1) return this.stop();
      left.log -= part.log;
      left.dx -= part.dx;
      left.dy -= part.dy;
    }
  };
})((window.splatcats ??= {}));
