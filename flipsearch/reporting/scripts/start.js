// What happens when the page is open.

(async () => {
  const data = await unpack("table-data");
  const answers = new AnswerViewer(data);
  const table = new LeaderboardTable(data, answers);
  const openPair = (row, prompt) => {
    const { id } = data.rows[row];
    if (answers.has(id)) answers.show({ context: id, open: prompt });
    else table.showRow(id);
  };
  if (byId("matrix")) new PairMatrix(data, openPair);
  if (answers.place) byId("open-answers").addEventListener("click", () => answers.show());
  for (const part of document.querySelectorAll("[data-script]")) part.hidden = false;
  for (const part of document.querySelectorAll("[data-no-script]")) part.hidden = true;
  performance.mark("ready");
  document.documentElement.dataset.ready = "true";
})();
