// Algorithm 1 and the geometry below it, as spheregen/sphere.py, spheregen/generation.py and the shipped samplers and
// conditioners have them. Latents and images are Float32Arrays of `count` rows, one an image; L numbers a latent.

// A latent whose root mean square is below this has no direction to speak of; as in spheregen/sphere.py.
const FLOOR = 1e-3;

/** Eq. 1: v = f(z), every row projected onto the sphere of radius √L. */
export function spherify(z, count) {
  const L = z.length / count;
  const v = new Float32Array(z.length);
  for (let row = 0; row < count; row++) {
    const begin = row * L;
    let square = 0;
    for (let i = begin; i < begin + L; i++) square += z[i] * z[i];
    const scale = Math.sqrt(L) / Math.max(Math.sqrt(square), FLOOR * Math.sqrt(L));
    for (let i = begin; i < begin + L; i++) v[i] = z[i] * scale;
  }
  return v;
}

/** Eq. 4: f(v + σ·e), the latent turned by about arctan σ towards the noise e; untouched where σ is 0. */
export function perturb(v, sigma, e, count) {
  return sigma === 0 ? v : spherify(v.map((coordinate, i) => coordinate + sigma * e[i]), count);
}

/** Eq. 12: σ = tan α, α in degrees. */
export function angleToSigma(degrees) {
  return Math.tan((degrees * Math.PI) / 180);
}

/** Eq. 13: the noise strength at step t = 2…T, r·(1 − (t−1)/(T−1))^γ; fixed is γ = 0. */
export function strength({ use, r, gamma }, step, steps) {
  return use === "decay" ? r * (1 - (step - 1) / (steps - 1)) ** gamma : r;
}

/**
 * The random part of generation. options: use (fixed, decay), r, gamma, noise (shared, shared-prior, independent).
 * draw(truncation) gives Gaussian numbers for one latent an image, truncated to ±truncation unless that is null.
 */
export function sampler(options, draw) {
  return {
    prior: () => draw(options.truncation),
    strength: (step, steps) => strength(options, step, steps),
    noise(previous, first) {
      if (options.noise !== "independent" && previous) return previous;
      return options.noise === "shared-prior" ? first : draw(null);
    },
  };
}

/** Algorithm 1: uncond + scale·(cond − uncond), both branches in one batch of 2B. */
async function guided(network, x, labels, nullLabel, scale) {
  const twice = new Float32Array(2 * x.length);
  twice.set(x);
  twice.set(x, x.length);
  const both = await network(twice, [...labels, ...labels.map(() => nullLabel)]);
  const half = both.length / 2;
  return both.subarray(0, half).map((cond, i) => both[half + i] + scale * (cond - both[half + i]));
}

/** What s is at each place that a position guides: combo takes √s at both (Appendix C.1). */
export function placeScale(position, scale) {
  return position === "combo" ? Math.sqrt(scale) : scale;
}

/** Classifier-free guidance at a position: none, latent (the encoder), pixel (the decoder) or combo (Section 2.4). */
export function conditioner(position, scale, nullLabel) {
  const s = placeScale(position, scale);
  const guides = (place) => s !== 1 && (position === "combo" || position === place);
  return {
    encode: (encoder, images, labels) =>
      labels && guides("latent") ? guided(encoder, images, labels, nullLabel, s) : encoder(images, labels),
    async decode(decoder, latents, labels) {
      if (!labels || !guides("pixel")) return decoder(latents, labels);
      const images = await guided(decoder, latents, labels, nullLabel, s);
      return images.map((pixel) => Math.min(Math.max(pixel, -1), 1)); // guidance may leave the pixels' range
    },
  };
}

/**
 * Algorithm 1, step by step: yields {number, images} for t = 1…steps, images in [-1, 1].
 *
 * networks: encode and decode, functions of (x, labels) that promise the other side; encode's latents are not on the
 * sphere yet. labels: a class an image, null for an unconditional model. sigmaMax: σ of Eq. 5.
 */
export async function* generate(networks, { labels, count, steps, sampler, conditioner, sigmaMax }) {
  const prior = sampler.prior();
  let v = spherify(prior, count); // Eq. 3
  let noise = null;
  for (let number = 1; ; number++) {
    const images = await conditioner.decode(networks.decode, v, labels); // Eq. 2
    yield { number, images };
    if (number === steps) return;
    v = spherify(await conditioner.encode(networks.encode, images, labels), count);
    const r = sampler.strength(number + 1, steps);
    if (r) {
      noise = sampler.noise(noise, prior);
      v = perturb(v, r * sigmaMax, noise, count); // Eq. 4
    }
  }
}

/** The image to show: [-1, 1] → [0, 1]. */
export function toPixels(images) {
  return images.map((value) => Math.min(Math.max((value + 1) / 2, 0), 1));
}
