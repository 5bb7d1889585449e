// The splats of one picture: decoding, drawing's ranges, who owns a place, and outlines.
"use strict";
((splatcats) => {
  const NUMBERS = 9; // of a splat: u v kx ky rho r g b d
  const FALLOFF = 4;
  const OUTLINE_Q = 0.25; // where the weight of a splat has fallen to 1/e of its own greatest

  splatcats.Field = class Field {
    // `data`: float16 little-endian in base64, [rows, columns, perPatch, 9], the last axis fastest.
    constructor(data, { rows, columns, perPatch }) {
      Object.assign(this, { rows, columns, perPatch });
      this.values = decodeHalves(data);
      const expected = rows * columns * perPatch * NUMBERS;
      if (this.values.length !== expected) throw new Error(`${this.values.length} numbers, not ${expected}`);
    }

    // The nine numbers of a splat; its row, column and number within the patch count from 0.
    splat({ row, column, number }) {
      const at = ((row * this.columns + column) * this.perPatch + number) * NUMBERS;
      const [u, v, kx, ky, rho, r, g, b, d] = this.values.subarray(at, at + NUMBERS);
      return { u, v, kx, ky, rho, r, g, b, d };
    }

    // Texels RGBA of the shader's texture, one row of patches a row.
    texels() {
      const count = this.values.length / NUMBERS;
      const texels = new Float32Array(count * splatcats.TEXELS_PER_SPLAT * 4);
      for (let i = 0; i < count; i++) {
        const [u, v, kx, ky, rho, r, g, b, d] = this.values.subarray(i * NUMBERS, (i + 1) * NUMBERS);
        texels.set([u, v, kx, ky, rho, d, 0, 0, r, g, b, 0], i * splatcats.TEXELS_PER_SPLAT * 4);
      }
      return texels;
    }

    // The least and the greatest of all colours together, and of the depths: views stretch them to what a screen shows.
    ranges() {
      const ranges = { colour: [Infinity, -Infinity], depth: [Infinity, -Infinity] };
      this.values.forEach((value, at) => {
        const number = at % NUMBERS;
        if (number < 5) return;
        const range = number < 8 ? ranges.colour : ranges.depth;
        range[0] = Math.min(range[0], value);
        range[1] = Math.max(range[1], value);
      });
      return ranges;
    }

    // The splat of the greatest weight at a place in patches, and its share of all weights there; null outside.
    owner(x, y, neighbourhood) {
      if (!(x >= 0 && y >= 0 && x < this.columns && y < this.rows)) return null;
      const margin = (neighbourhood - 1) / 2;
      const logits = [];
      let best = null;
      const top = Math.max(0, Math.floor(y) - margin), bottom = Math.min(this.rows - 1, Math.floor(y) + margin);
      const left = Math.max(0, Math.floor(x) - margin), right = Math.min(this.columns - 1, Math.floor(x) + margin);
      for (let row = top; row <= bottom; row++) {
        for (let column = left; column <= right; column++) {
          const window = margin ? logWindow(x - column) + logWindow(y - row) : 0;
          for (let number = 0; number < this.perPatch; number++) {
            const { u, v, kx, ky, rho, d } = this.splat({ row, column, number });
            const a = kx * (x - column - u), b = ky * (y - row - v);
            const logit = d + window - FALLOFF * (a * a + 2 * rho * a * b + b * b);
            logits.push(logit);
            if (!best || logit > best.logit) best = { row, column, number, logit };
          }
        }
      }
      const total = logits.reduce((sum, logit) => sum + Math.exp(logit - best.logit), 0);
      return { row: best.row, column: best.column, number: best.number, share: 1 / total };
    }

    // The ellipse q = OUTLINE_Q of a splat, in patches from the picture's corner, its angle in degrees.
    outline(place) {
      const { u, v, kx, ky, rho } = this.splat(place);
      const a = kx * kx, b = rho * kx * ky, c = ky * ky;
      const middle = (a + c) / 2, spread = Math.hypot((a - c) / 2, b);
      return {
        cx: place.column + u,
        cy: place.row + v,
        rx: Math.sqrt(OUTLINE_Q / (middle - spread)), // along the direction in which q grows slowest
        ry: Math.sqrt(OUTLINE_Q / (middle + spread)),
        angle: (Math.atan2(2 * b, a - c) * 90) / Math.PI + 90,
      };
    }
  };

  function logWindow(place) {
    const outside = Math.min(1, Math.max(0, -place, place - 1));
    return 4 * Math.log(Math.cos((Math.PI / 2) * outside));
  }

  function decodeHalves(base64) {
    const text = atob(base64);
    const values = new Float32Array(text.length >> 1);
    for (let i = 0; i < values.length; i++) {
      values[i] = halfToNumber(text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8));
    }
    return values;
  }

  function halfToNumber(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 0x1f, fraction = (bits & 0x3ff) / 1024;
    if (exponent === 0) return sign * fraction * 2 ** -14;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction) * 2 ** (exponent - 15);
  }
})((window.splatcats ??= {}));
