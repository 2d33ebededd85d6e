"""The code interpreter's service: what runs inside the template `code-interpreter-v1`, copied into it under the name `torpor_code`.

    49999 (E2B)  8888 (Jupyter)          one process: HTTP, WebSocket, contexts            server.py, e2b.py, jupyter.py, contexts.py
         |            |                                                                    languages.py, cells.py
         +-----+------+
               | one control socket, one pipe for stdout, one for stderr, per kernel       kernels.py
       +-------+--------+---------+
       |                |         |
    fork server        node      bash                                                      forkserver.py, kernel.js, bashes.py
       | fork
    Python kernels                                                                         kernel.py, shell.py, charts.py, frames.py, reseed.py

The fork server has imported and exercised everything before it forks, so that a new kernel costs a fork, and the memory is shared. All of it is in the
template's warm image, ready. Nothing here imports anything else of torpor: it runs on the template's own Python.
"""
