// Mouse, pen and fingers on the stage: drag, pinch, wheel, double tap, hover. Places are in device pixels.
"use strict";
((splatcats) => {
  const TAP_MOVES = 6; // CSS pixels that a tap may move
  const DOUBLE_TAP_MS = 320;
  const DOUBLE_TAP_ZOOM = 3;
  const FLING_MS = 120; // a drag let go of moves on as far as it went in this time

  // `on`: { moved() after the camera changed, point(place, type) where something points, leave() }.
  splatcats.listen = (stage, camera, on) => {
    const pointers = new Map(); // id -> { x, y }
    let travelled = 0, lastTap = null, velocity = { x: 0, y: 0, time: 0 };

    const placeOf = (event) => {
      const box = stage.getBoundingClientRect();
      const ratio = camera.width / box.width;
      return { x: (event.clientX - box.left) * ratio, y: (event.clientY - box.top) * ratio, ratio };
    };
    const middle = () => {
      const places = [...pointers.values()];
      const x = places.reduce((sum, place) => sum + place.x, 0) / places.length;
      const y = places.reduce((sum, place) => sum + place.y, 0) / places.length;
      const spread = places.length > 1 ? Math.hypot(places[0].x - places[1].x, places[0].y - places[1].y) : 0;
      return { x, y, spread };
    };

    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      stage.setPointerCapture(event.pointerId);
      camera.stop();
      travelled = pointers.size ? Infinity : 0; // a second finger makes it no tap
      velocity = { x: 0, y: 0, time: event.timeStamp };
      pointers.set(event.pointerId, placeOf(event));
    });

    stage.addEventListener("pointermove", (event) => {
      const place = placeOf(event);
      if (!pointers.has(event.pointerId)) return on.point(place, event.pointerType);
      const before = middle();
      pointers.set(event.pointerId, place);
      const after = middle();
      const dx = after.x - before.x, dy = after.y - before.y;
      travelled += Math.hypot(dx, dy) / place.ratio;
      if (travelled < TAP_MOVES) return;
      stage.classList.add("dragged");
      if (before.spread && after.spread) camera.zoomBy(after.spread / before.spread, before.x, before.y);
      camera.panBy(dx, dy);
      const ms = Math.max(1, event.timeStamp - velocity.time);
      const blend = (old, step) => 0.7 * old + (0.3 * step) / ms;
      velocity = { x: blend(velocity.x, dx), y: blend(velocity.y, dy), time: event.timeStamp };
      on.moved();
    });

    const release = (event) => {
      const place = pointers.get(event.pointerId);
      pointers.delete(event.pointerId);
      if (!place || pointers.size) return;
      stage.classList.remove("dragged");
      if (travelled >= TAP_MOVES) {
        const resting = event.timeStamp - velocity.time > 60;
        if (!resting && event.type === "pointerup") camera.glidePan(velocity.x * FLING_MS, velocity.y * FLING_MS);
        return on.moved();
      }
      const again = lastTap && event.timeStamp - lastTap.time < DOUBLE_TAP_MS &&
        Math.hypot(place.x - lastTap.x, place.y - lastTap.y) < 30 * place.ratio;
      lastTap = again ? null : { ...place, time: event.timeStamp };
      if (again) {
        camera.glideZoom(event.shiftKey ? 1 / DOUBLE_TAP_ZOOM : DOUBLE_TAP_ZOOM, place.x, place.y);
        on.moved();
      }
      on.point(place, event.pointerType);
    };
    stage.addEventListener("pointerup", release);
    stage.addEventListener("pointercancel", release);
    stage.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && on.leave());

    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const place = placeOf(event);
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      // A pinch on a touchpad comes as a wheel with Ctrl, in smaller steps.
      const power = event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002);
      const smooth = Math.abs(event.deltaY) * lines < 40; // a touchpad; a mouse's notches are glided over
      if (smooth) camera.zoomBy(Math.exp(-power), place.x, place.y);
      else camera.glideZoom(Math.exp(-power), place.x, place.y);
      on.moved();
      on.point(place, "mouse");
    }, { passive: false });
  };
})((window.splatcats ??= {}));
