// Random numbers that depend on a seed and on an image's number alone, the same in every browser. They are not
// PyTorch's: a seed here and in `spheregen sample` gives different images.

/** Chris Doty-Humphrey's sfc32 (PractRand), seeded by two words: a function that gives the next of 2³² integers. */
export function sfc32(seed, index) {
  let [a, b, c, counter] = [seed >>> 0, index >>> 0, 0, 1];
  const next = () => {
    const result = (a + b + counter) >>> 0;
    counter = (counter + 1) >>> 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) >>> 0;
    c = (((c << 21) | (c >>> 11)) + result) >>> 0;
    return result;
  };
  for (let round = 0; round < 15; round++) next(); // until every bit of the seed has reached every word
  return next;
}

/** Box-Muller: a function that gives the next standard Gaussian number, from the uniform integers of `next`. */
export function gaussian(next) {
  let spare = null;
  return () => {
    if (spare !== null) {
      const kept = spare;
      spare = null;
      return kept;
    }
    const radius = Math.sqrt(-2 * Math.log((next() + 1) / 2 ** 32));
    const angle = (2 * Math.PI * next()) / 2 ** 32;
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

/** What a sampler draws from: a call gives `length` numbers for each of `count` images, each from its own stream. */
export function source(seed, count, length) {
  const streams = Array.from({ length: count }, (_, index) => gaussian(sfc32(seed, index)));
  return (truncation) => {
    const numbers = new Float32Array(count * length);
    streams.forEach((normal, row) => {
      for (let i = row * length; i < (row + 1) * length; i++) {
        do numbers[i] = normal();
        while (truncation != null && Math.abs(numbers[i]) > truncation);
      }
    });
    return numbers;
  };
}
