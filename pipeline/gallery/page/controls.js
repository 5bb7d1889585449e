// The panel beside the picture: choices, buttons, the small map.
"use strict";
((splatcats) => {
  const find = (selector) => document.querySelector(selector);

  splatcats.CHOICES = {
    view: [
      { value: "picture", text: "Picture", about: "The picture that the splats make" },
      { value: "blobs", text: "Blobs", about: "Every splat a round dot of one size" },
      { value: "depth", text: "Depth", about: "Who covers whom: bright splats lie in front" },
      { value: "patches", text: "Patches", about: "The grid of patches, the network's tokens" },
    ],
    kernel: [
      { value: "wavelet", text: "Wavelet", about: "exp(−0.9 q) cos(6 q)" },
      { value: "sharp", text: "Sharp", about: "A flat top with a steep edge" },
      { value: "gaussian", text: "Gaussian", about: "exp(−2 q)" },
    ],
    neighbourhood: [
      { value: 3, text: "3 × 3", about: "Splats of the patches around blend: no seams" },
      { value: 1, text: "1", about: "Every patch on its own: the seams show" },
    ],
  };

  splatcats.Controls = class Controls {
    // `on`: { change(name, value), run(command) }.
    constructor(catalogue, on) {
      this.catalogue = catalogue;
      for (const fieldset of document.querySelectorAll("#controls fieldset")) {
        const { name } = fieldset.dataset;
        fieldset.querySelector("div").append(...splatcats.CHOICES[name].map((choice) => segment(name, choice, on)));
      }
      for (const button of document.querySelectorAll("button[data-command]"))
        button.addEventListener("click", () => on.run(button.dataset.command));
      find("#map").style.aspectRatio = `${catalogue.columns} / ${catalogue.rows}`;
    }

    show(state) {
      find("#name").textContent = `Cat ${state.cat}`;
      find("#map img").src = splatcats.fileOf(this.catalogue, state.cat, "webp");
      for (const input of document.querySelectorAll("#controls input"))
        input.checked = String(state[input.name]) === input.value;
      // Dots and depth have kernels of their own.
      find('fieldset[data-name="kernel"]').disabled = state.view === "blobs" || state.view === "depth";
      find('[data-command="outlines"]').setAttribute("aria-pressed", state.outlines);
    }

    follow(camera) {
      const { x0, y0, x1, y1 } = camera.region;
      const percent = (value) => `${100 * value}%`;
      const box = { left: percent(x0), top: percent(y0), width: percent(x1 - x0), height: percent(y1 - y0) };
      Object.assign(find("#map i").style, box);
      find("#map").classList.toggle("whole", x1 - x0 > 0.999 && y1 - y0 > 0.999);
      find("#zoom").textContent = `${camera.zoom.toFixed(camera.zoom < 10 ? 1 : 0)}×`;
    }
  };

  function segment(name, { value, text, about }, on) {
    const label = document.createElement("label"), input = document.createElement("input");
    const shown = document.createElement("span");
    Object.assign(input, { type: "radio", name, value });
    input.addEventListener("change", () => on.change(name, value));
    shown.textContent = text;
    label.title = about;
    label.append(input, shown);
    return label;
  }
})((window.splatcats ??= {}));
