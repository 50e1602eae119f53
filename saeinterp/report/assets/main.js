/* Start: every section is already in the page as HTML; this adds the table, the drawer and the plots. */

async function start() {
  if (typeof DecompressionStream === "undefined") {
    byId("old-browser").hidden = false;
    return;
  }
  const payload = JSON.parse(await inflate("payload"));
  let table = null;
  let drawer = null;
  const everything = () => payload.latents.columns.id.map((_, index) => index);
  const openDetail = (index, order) => drawer?.open(index, order ?? table?.order() ?? everything());
  const grids = payload.latents || payload.associated ? library("lib-tabulator") : false;
  if (payload.latents) {
    drawer = makeDrawer(payload.latents, payload.details);
    /* Before the table, which takes a while to load: these buttons are on the page from the start. */
    document.querySelectorAll("[data-latent]").forEach((button) => {
      button.addEventListener("click", () => openDetail(Number(button.dataset.latent)));
    });
    if (await grids) {
      table = await makeTable(payload.latents, openDetail);
      drawer.whenClosed((index) => table.focusRow(index));
    }
    const wanted = decodeURIComponent(location.hash.replace(/^#latent=/, ""));
    const index = payload.latents.columns.id.indexOf(wanted);
    if (index >= 0) openDetail(index, everything());
  }
  if (payload.associated && (await grids)) await makeAssociated(payload.associated);
  const plots = makePlots(payload.figures, openDetail);
  table?.onFilter((indices) => plots.filter(indices));
  document.documentElement.dataset.ready = "true";
}

start();
