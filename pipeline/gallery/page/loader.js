// Splats on demand: one script a cat, since pages opened from a folder may load scripts but not fetch files.
"use strict";
((splatcats) => {
  const promises = new Map();
  const receivers = new Map();

  splatcats.fileOf = (catalogue, cat, extension) => `${catalogue.folder}/cats/${cat.padStart(8, "0")}.${extension}`;

  // The field of a cat, a promise. A cat that could not be loaded is asked for again the next time.
  splatcats.load = (catalogue, cat) => {
    if (!promises.has(cat)) {
      const promise = request(catalogue, cat);
      promises.set(cat, promise);
      promise.catch(() => promises.delete(cat));
    }
    return promises.get(cat);
  };

  // What the scripts call.
  splatcats.deliver = (cat, data) => receivers.get(cat)?.(data);

  function request(catalogue, cat) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const fail = () => reject(new Error(`The splats of cat ${cat} cannot be read: ${script.getAttribute("src")}`));
      receivers.set(cat, (data) => {
        try {
          resolve(new splatcats.Field(data, catalogue));
        } catch {
          fail();
        }
      });
      script.onerror = script.onload = () => {
        script.remove();
        fail(); // has no effect once the field has been delivered
      };
      script.src = splatcats.fileOf(catalogue, cat, "js");
      document.head.append(script);
    });
  }
})((window.splatcats ??= {}));
