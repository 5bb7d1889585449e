// The keyboard: one table, from which the help is made as well.
"use strict";
((splatcats) => {
  const PAN = 0.18; // of the stage's smaller side

  // Rows: keys, what the help calls them, what they do, and what they do it to. `viewer` rows need a chosen cat.
  const pan = (x, y) => (viewer) => viewer.pan(x * PAN, y * PAN);
  const KEYS = [
    { keys: ["+", "="], shown: "+", text: "zoom in", viewer: (viewer) => viewer.run("in") },
    { keys: ["-", "_"], shown: "−", text: "zoom out", viewer: (viewer) => viewer.run("out") },
    { keys: ["0"], shown: "0", text: "the whole picture", viewer: (viewer) => viewer.run("fit") },
    { keys: ["ArrowLeft"], shown: "← ↑ ↓ →", text: "move, in a cat and on the sheet", viewer: pan(1, 0) },
    { keys: ["ArrowRight"], viewer: pan(-1, 0) },
    { keys: ["ArrowUp"], viewer: pan(0, 1) },
    { keys: ["ArrowDown"], viewer: pan(0, -1) },
    { keys: ["n", "PageDown"], shown: "N", text: "next cat", viewer: (viewer) => viewer.run("next") },
    { keys: ["p", "PageUp"], shown: "P", text: "previous cat", viewer: (viewer) => viewer.run("previous") },
    { keys: ["v"], shown: "V", text: "next view: picture, blobs, depth, patches", viewer: (viewer) => viewer.cycle("view") },
    { keys: ["k"], shown: "K", text: "next kernel: wavelet, sharp, gaussian", viewer: (viewer) => viewer.cycle("kernel") },
    { keys: ["b"], shown: "B", text: "blend 3×3 patches, or each on its own", viewer: (viewer) => viewer.cycle("neighbourhood") },
    { keys: ["o"], shown: "O", text: "outline every splat", viewer: (viewer) => viewer.run("outlines") },
    { keys: ["s"], shown: "S", text: "save this view as PNG", viewer: (viewer) => viewer.run("save") },
    { keys: ["Escape"], shown: "Esc", text: "back to all cats", viewer: (viewer) => viewer.run("leave") },
    { keys: ["?"], shown: "?", text: "this help" },
  ];
  const GESTURES = [
    ["drag", "move"],
    ["wheel, pinch", "zoom"],
    ["double tap", "zoom in there; with Shift, out"],
    ["point, tap", "the splat there, its outline and numbers"],
  ];

  splatcats.openHelp = () => {
    const dialog = document.getElementById("help");
    const rows = [...KEYS.filter((key) => key.text).map((key) => [key.shown, key.text]), ...GESTURES];
    dialog.querySelector("table").replaceChildren(...rows.map(([shown, text]) => {
      const row = document.createElement("tr"), key = document.createElement("kbd");
      key.textContent = shown;
      row.insertCell().append(key);
      row.insertCell().textContent = text;
      return row;
    }));
    dialog.showModal();
    dialog.scrollTop = 0; // the button at its end has the focus
  };

  splatcats.listenToKeys = (viewer) => {
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("help").open) return;
      const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const arrow = name.startsWith("Arrow");
      // In a row of choices the arrows choose.
      if (arrow && document.activeElement?.matches("#controls input")) return;
      if (name === "?") splatcats.openHelp();
      else if (viewer.open) {
        const row = KEYS.find((key) => key.keys.includes(name));
        if (!row) return;
        row.viewer(viewer);
      } else if (!arrow || !splatcats.moveFocus(name)) return; // an arrow without a tile to go to scrolls
      event.preventDefault();
    });
  };
})((window.splatcats ??= {}));
