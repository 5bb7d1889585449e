// Start: the catalogue in the page, the contact sheet, and whatever the address asks for.
"use strict";
((splatcats) => {
  const catalogue = JSON.parse(document.getElementById("catalogue").textContent);
  splatcats.fillSheet(catalogue);
  const viewer = new splatcats.Viewer(catalogue);
  splatcats.listenToKeys(viewer);
  const follow = () => viewer.show(splatcats.readAddress(catalogue, location.hash));
  window.addEventListener("hashchange", follow);
  follow();
})((window.splatcats ??= {}));
