// The contact sheet: a link a cat, and where the cats come from.
"use strict";
((splatcats) => {
  splatcats.fillSheet = (catalogue) => {
    const find = (id) => document.getElementById(id);
    const number = (value) => Number(value).toLocaleString("en");
    const splats = catalogue.rows * catalogue.columns * catalogue.perPatch;
    const of = catalogue.cats.length < catalogue.total ? ` of ${number(catalogue.total)}` : "";
    find("summary").textContent =
      `${number(catalogue.cats.length)}${of} cats, ${number(splats)} splats each. Choose one and zoom in.`;
    find("tiles").style.setProperty("--shape", `${catalogue.columns} / ${catalogue.rows}`);
    find("tiles").replaceChildren(...catalogue.cats.map((cat) => tile(catalogue, cat)));
    for (const [name, value] of Object.entries(catalogue.plan)) {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name.replaceAll("_", " ");
      text.textContent = value;
      find("plan").append(term, text);
    }
  };

  // Arrow keys move between tiles as the eye sees them, from the first in sight; whether there was one to move to.
  splatcats.moveFocus = (key) => {
    const tiles = [...document.querySelectorAll("#tiles a")];
    const inFirstRow = tiles.findIndex((tile) => tile.offsetTop > tiles[0].offsetTop);
    const columns = inFirstRow < 0 ? tiles.length : inFirstRow;
    const now = tiles.indexOf(document.activeElement);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const target = tiles[now < 0 ? tiles.findIndex(isInSight) : now + steps[key]];
    target?.focus();
    return Boolean(target);
  };

  function isInSight(tile) {
    const { top } = tile.getBoundingClientRect();
    return top >= 0 && top < innerHeight;
  }

  function tile(catalogue, cat) {
    const link = document.createElement("a"), image = document.createElement("img"), label = document.createElement("span");
    link.href = `#cat=${cat}`;
    link.dataset.cat = cat;
    image.src = splatcats.fileOf(catalogue, cat, "webp");
    image.alt = `Cat ${cat}`;
    image.loading = "lazy";
    label.textContent = cat;
    label.ariaHidden = "true";
    link.append(image, label);
    return link;
  }
})((window.splatcats ??= {}));
