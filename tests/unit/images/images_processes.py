"""A plain Processes for the images' tests: `run` with asyncio, and nothing else."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from torpor.model.errors import MissingTool, TimedOut
from torpor.ports.processes import Completed


class PlainProcesses:
    """Runs tools for real."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[bytes], None] | None = None,
    ) -> Completed:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=env,
                start_new_session=True,
                limit=1 << 24,
            )
        except FileNotFoundError as error:
            raise MissingTool(str(error)) from error

        async def read(stream: asyncio.StreamReader) -> bytes:
            lines = []
            async for line in stream:
                lines.append(line)
                if on_line:
                    on_line(line.rstrip(b"\n"))
            return b"".join(lines)

        try:
            async with asyncio.timeout(timeout):
                assert process.stdout
                assert process.stderr
                out, err = await asyncio.gather(read(process.stdout), read(process.stderr))
                return Completed(await process.wait(), out, err)
        except TimeoutError as error:
            raise TimedOut(f"{argv[0]} took longer than {timeout} s.") from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
