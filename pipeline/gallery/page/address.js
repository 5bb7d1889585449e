// What is shown, as the part of the address after #: links, the back button and bookmarks find it again.
"use strict";
((splatcats) => {
  // The state that an address without anything stands for: the contact sheet.
  splatcats.initialState = ({ kernel, neighbourhood }) => ({
    cat: null,
    view: "picture",
    kernel,
    neighbourhood,
    x: 0.5,
    y: 0.5,
    zoom: 1,
    outlines: false,
  });

  // Anything that cannot be is left at its initial value.
  splatcats.readAddress = (catalogue, hash) => {
    const given = new URLSearchParams(hash.slice(1));
    const state = splatcats.initialState(catalogue);
    const choose = (name, values) => {
      const found = values.find((value) => String(value) === given.get(name));
      if (found !== undefined) state[name] = found;
    };
    choose("cat", catalogue.cats);
    choose("view", splatcats.VIEWS);
    choose("kernel", splatcats.KERNELS);
    choose("neighbourhood", [3, 1]);
    choose("outlines", [true]);
    for (const name of ["x", "y", "zoom"]) {
      const value = Number.parseFloat(given.get(name));
      if (Number.isFinite(value)) state[name] = value;
    }
    return state;
  };

  splatcats.writeAddress = (catalogue, state) => {
    const initial = splatcats.initialState(catalogue);
    const given = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      const text = ["x", "y", "zoom"].includes(name) ? String(Number(value.toFixed(6))) : String(value);
      if (text !== String(initial[name])) given.set(name, text);
    }
    return `#${given}`;
  };
})((window.splatcats ??= {}));
