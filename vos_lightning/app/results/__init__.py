"""The results table: every published row beside what runs have measured, and nothing that was not measured.

``vos results`` reads the ``scores/test.json`` of every run and writes ``results.md`` and
``results.html``. A score counts as ours for a row only if

- the evaluation covered the published data set, recognised by protocol, number of videos and number of objects;
- the checkpoint comes from the finished training of the row's experiment (its stages, or the experiment that it evaluates), and
  is its last or its best one, as the experiment says;
- neither training nor evaluation changed an option that decides the result, and the experiment has not changed since;
- the experiment trains on the data of the paper; ``published.departs`` says where it does not.

Every other score is listed below the tables with the reason. Scores of evaluation servers are read from ``scores/server.json``;
``experiments/README.md`` says what that file holds.
"""
