/* Where the pages of latents lie: in packed parts of this file, or in files beside it, which a script element may load
   even where the page comes from disk. Each part is read once, when a page in it is first opened. */

const EXPLAINED = { part: "details", file: "shard", what: "The examples", table: "tables/examples.parquet" };
const ASSOCIATED = { part: "pairs", file: "pairs", what: "The tokens", table: "tables/pairs.parquet" };

/* One after the other: two files on their way at once would meet in one function. */
let turn = Promise.resolve();

function latentPages(data, nonce, kind) {
  const chunkOf = new Map(data.chunks.flatMap((rows, chunk) => rows.map((row) => [row, chunk])));
  const shards = new Set(data.shards);
  const parts = new Map();

  async function unpack(base64) {
    return JSON.parse(await gunzip(base64));
  }

  function shard(number) {
    const name = `latents/${kind.file}-${String(number).padStart(5, "0")}.js`;
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const done = () => { script.remove(); delete window.saeinterpShard; };
      window.saeinterpShard = (_number, base64) => resolve(unpack(base64));
      script.nonce = nonce;
      script.src = name;
      script.addEventListener("load", done);
      script.addEventListener("error", () => { done(); reject(new Error(`${kind.what} of this latent are in ${name}, which is not beside this page: keep the report's folder together, or read ${kind.table}.`)); });
      document.head.append(script);
    });
  }

  const once = (key, load) => {
    if (!parts.has(key)) {
      turn = turn.catch(() => {}).then(load);
      const found = turn;
      parts.set(key, found);
      found.catch(() => parts.delete(key));
    }
    return parts.get(key);
  };

  return async function page(row) {
    const chunk = chunkOf.get(row);
    if (chunk !== undefined) return (await once(`chunk ${chunk}`, async () => JSON.parse(await inflate(`${kind.part}-${chunk}`))))[row];
    const number = Math.floor(row / data.shard);
    if (!shards.has(number)) return null;
    return (await once(`shard ${number}`, () => shard(number)))[row] ?? null;
  };
}
