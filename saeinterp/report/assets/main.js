/* Start: every section is already in the page as HTML; this adds the tables, the pages of latents and the plots. */

async function start() {
  if (typeof DecompressionStream === "undefined") {
    byId("old-browser").hidden = false;
    return;
  }
  const payload = JSON.parse(await inflate("payload"));
  let table = null;
  let page = null;
  const everything = () => payload.latents.columns.id.map((_, index) => index);
  const openDetail = (index, order) => page?.open(index, order ?? table?.order() ?? everything());
  const grids = payload.latents || payload.associated ? library("lib-tabulator") : false;
  if (payload.latents) {
    page = makeLatentPage(payload.latents, latentPages(payload.latents, document.documentElement.dataset.nonce));
    /* Before the table, which takes a while to load: these buttons are on the page from the start. */
    document.querySelectorAll("[data-latent]").forEach((button) => {
      button.addEventListener("click", () => openDetail(Number(button.dataset.latent)));
    });
    if (await grids) {
      table = await makeTable(payload.latents, openDetail);
      page.whenClosed((index) => table.focusRow(index));
    }
    const wanted = page.rowOf(location.hash);
    if (wanted !== undefined) openDetail(wanted, everything());
  }
  if (payload.associated && (await grids)) await makeAssociated(payload.associated);
  const plots = makePlots(payload.figures, payload.latents, openDetail);
  table?.onFilter((indices) => plots.filter(indices));
  const stops = () => reachable(document);
  stops();
  addEventListener("resize", stops);
  document.addEventListener("toggle", stops, true); // a part that opens may scroll
  document.documentElement.dataset.ready = "true";
}

start();
