// WebGL 2: a field's parameters in a texture, the formula in a shader, one triangle.
"use strict";
((splatcats) => {
  splatcats.Painter = class Painter {
    // Throws an Error with a sentence for the user where the browser has no WebGL 2.
    constructor(canvas) {
      this.canvas = canvas;
      this.gl = canvas.getContext("webgl2", { antialias: false, depth: false, powerPreference: "high-performance" });
      if (!this.gl) throw new Error("This browser offers no WebGL 2, with which the splats are drawn.");
      canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
      canvas.addEventListener("webglcontextrestored", () => {
        this.prepare();
        if (this.field) this.take(this.field);
      });
      this.prepare();
    }

    prepare() {
      const { gl } = this;
      const program = gl.createProgram();
      gl.attachShader(program, compile(gl, gl.VERTEX_SHADER, splatcats.VERTEX_SHADER));
      gl.attachShader(program, compile(gl, gl.FRAGMENT_SHADER, splatcats.FRAGMENT_SHADER));
      gl.linkProgram(program);
      if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
      gl.useProgram(program);
      this.uniforms = {};
      for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
        const { name } = gl.getActiveUniform(program, i);
        this.uniforms[name] = gl.getUniformLocation(program, name);
      }
      gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
      // A texture of floats is complete only without filtering.
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    }

    // Upload the splats that `draw` will draw.
    take(field) {
      const { gl, uniforms } = this;
      this.field = field;
      const width = field.columns * field.perPatch * splatcats.TEXELS_PER_SPLAT;
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, width, field.rows, 0, gl.RGBA, gl.FLOAT, field.texels());
      const { colour, depth } = field.ranges();
      gl.uniform2i(uniforms.grid, field.columns, field.rows);
      gl.uniform1i(uniforms.perPatch, field.perPatch);
      gl.uniform2fv(uniforms.colourRange, colour);
      gl.uniform2fv(uniforms.depthRange, depth);
    }

    // Draw what the camera sees. `fineness` below 1 draws fewer pixels, which the browser enlarges.
    draw(camera, { view, kernel, neighbourhood }, fineness = 1) {
      const { gl, uniforms, canvas } = this;
      const width = Math.max(1, Math.round(camera.width * fineness));
      const height = Math.max(1, Math.round(camera.height * fineness));
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      gl.viewport(0, 0, width, height);
      const start = camera.toPatches(0, 0);
      gl.uniform2f(uniforms.start, start.x, start.y);
      gl.uniform1f(uniforms.step_, camera.width / width / camera.scale);
      gl.uniform1f(uniforms.canvasHeight, height);
      gl.uniform1i(uniforms.view, splatcats.VIEWS.indexOf(view));
      gl.uniform1i(uniforms.kernelName, splatcats.KERNELS.indexOf(kernel));
      gl.uniform1i(uniforms.neighbourhood, neighbourhood);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    }
  };

  function compile(gl, type, source) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    return shader;
  }
})((window.splatcats ??= {}));
