// The formula of the splats as a fragment shader: what models/rasterize.py draws, one pixel at a time.
"use strict";
((splatcats) => {
  splatcats.VERTEX_SHADER = `#version 300 es
void main() {  // one triangle over the whole canvas
  gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}`;

  // In the order of the indices that the shader compares with.
  splatcats.VIEWS = ["picture", "blobs", "depth", "patches"];
  splatcats.KERNELS = ["wavelet", "sharp", "gaussian"];
  splatcats.TEXELS_PER_SPLAT = 3;

  splatcats.FRAGMENT_SHADER = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;

const int PICTURE = 0, BLOBS = 1, DEPTH = 2, PATCHES = 3;
const int WAVELET = 0, SHARP = 1, GAUSSIAN = 2, CONSTANT = 3;
const float FALLOFF = 4.0;
const float BLOB_SCALE = 7.0;
const float BLOB_DIMMEST = 0.3;
const float NATIVE_PIXELS = 8.0;
const float NEGLIGIBLE = -20.0;  // a weight of exp(-20) of the greatest shows in no 8-bit colour
const float ROUNDING = 2e-6;  // a pixel centre on a border belongs to the patch after it, whatever fp32 makes of it

uniform sampler2D splats;  // a row of patches a row; of a splat the texels (u v kx ky) (rho d) (r g b)
uniform ivec2 grid;        // columns, rows of patches
uniform int perPatch;
uniform int view;
uniform int kernelName;
uniform int neighbourhood;
uniform vec2 start;        // the canvas's top left corner, in patches
uniform float step_;       // patches a pixel
uniform float canvasHeight;
uniform vec2 colourRange;  // least and greatest of the picture's r, g and b together
uniform vec2 depthRange;   // and of its d
out vec4 colour;

float kernel(float q, int name) {
  if (name == WAVELET) return exp(-0.9 * q) * cos(6.0 * q);
  if (name == GAUSSIAN) return exp(-2.0 * q);
  if (name == CONSTANT) return 1.0;
  float s = 2.0 * q, t = min(s, 1.0);
  float t2 = t * t, t4 = t2 * t2, t8 = t4 * t4;
  return 1.0 - t8 * t8 - 4.0 * exp(-s) * sin(max(s, 1.0) - 1.0);
}

float distanceOutside(float place) { return max(-place, place - 1.0); }

// Logarithm of the window: 1 within the patch, the square of a raised cosine to 0 one patch further.
float logWindow(float outside) {
  return 4.0 * log(cos(1.5707963267948966 * clamp(outside, 0.0, 1.0)));
}

vec3 stretched(vec3 values, vec2 range) { return (values - range.x) / max(range.y - range.x, 1e-6); }

vec3 splatColour(vec3 rgb, float d) {
  if (view == BLOBS) return BLOB_DIMMEST + (2.0 - BLOB_DIMMEST) * stretched(rgb, colourRange);
  if (view == DEPTH) return 2.0 * stretched(vec3(d), depthRange) - 1.0;
  return rgb;
}

// Sum of w kernel(q) rgb over sum of w, at a position in patches. Weights are relative to the greatest so far, so a
// position far from every splat still takes the colour of the nearest.
vec3 blend(vec2 position) {
  int used = view == BLOBS ? GAUSSIAN : view == DEPTH ? CONSTANT : kernelName;
  ivec2 home = clamp(ivec2(floor(position + ROUNDING)), ivec2(0), grid - 1);
  int tiles = neighbourhood * neighbourhood;
  float greatest = -1e30, total = 0.0;
  vec3 sum = vec3(0.0);
  for (int i = 0; i < tiles; i++) {
    int turn = (i + tiles / 2) % tiles;  // the home patch first: most others are then negligible
    ivec2 tile = home + ivec2(turn % neighbourhood, turn / neighbourhood) - neighbourhood / 2;
    if (any(lessThan(tile, ivec2(0))) || any(greaterThanEqual(tile, grid))) continue;
    vec2 place = position - vec2(tile);
    float window = 0.0;
    if (neighbourhood > 1) {
      vec2 outside = vec2(distanceOutside(place.x), distanceOutside(place.y));
      if (max(outside.x, outside.y) >= 1.0) continue;
      window = logWindow(outside.x) + logWindow(outside.y);
    }
    for (int k = 0; k < perPatch; k++) {
      int at = (tile.x * perPatch + k) * ${splatcats.TEXELS_PER_SPLAT};
      vec4 shape = texelFetch(splats, ivec2(at, tile.y), 0);
      vec2 rest = texelFetch(splats, ivec2(at + 1, tile.y), 0).xy;
      float d = rest.y;
      if (view == BLOBS) {
        shape.zw = vec2(BLOB_SCALE);
        rest = vec2(0.0);
      }
      vec2 scaled = shape.zw * (place - shape.xy);
      float q = dot(scaled, scaled) + 2.0 * rest.x * scaled.x * scaled.y;
      float logit = rest.y + window - FALLOFF * q;
      if (logit < greatest + NEGLIGIBLE) continue;
      if (logit > greatest) {
        float shrink = exp(greatest - logit);
        sum *= shrink;
        total *= shrink;
        greatest = logit;
      }
      float w = exp(logit - greatest);
      vec3 rgb = texelFetch(splats, ivec2(at + 2, tile.y), 0).rgb;
      sum += w * kernel(q, used) * splatColour(rgb, d);
      total += w;
    }
  }
  return sum / total;
}

// How white the grid makes a pixel: lines are a pixel wide at least, and fainter where patches are smaller than native.
float onGrid(vec2 position) {
  vec2 place = position - clamp(floor(position + ROUNDING), vec2(0.0), vec2(grid - 1));
  vec2 border = min(place, 1.0 - place);
  if (min(border.x, border.y) >= max(1.0 / 128.0, 0.501 * step_)) return 0.0;
  return min(1.0, 1.0 / (NATIVE_PIXELS * step_));
}

void main() {
  vec2 corner = start + step_ * vec2(gl_FragCoord.x - 0.5, canvasHeight - gl_FragCoord.y - 0.5);
  vec2 centre = corner + 0.5 * step_;
  if (any(lessThan(centre, vec2(0.0))) || any(greaterThanEqual(centre, vec2(grid)))) {
    colour = vec4(0.0);
    return;
  }
  // Below native resolution several splats fall on a pixel: draw finer and average.
  int fine = max(1, int(ceil(NATIVE_PIXELS * step_ - 1e-4)));
  vec3 sum = vec3(0.0);
  for (int y = 0; y < fine; y++)
    for (int x = 0; x < fine; x++) sum += blend(corner + step_ * (vec2(x, y) + 0.5) / float(fine));
  vec3 drawn = sum / float(fine * fine);
  if (view == BLOBS) drawn -= 1.0;
  if (view == PATCHES) drawn = mix(drawn, vec3(1.0), onGrid(centre));
  colour = vec4(0.5 * clamp(drawn, -1.0, 1.0) + 0.5, 1.0);
}`;
})((window.splatcats ??= {}));
