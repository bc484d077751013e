"""Reading what a process of a guest writes."""

import anyio


async def whole(read):
    data = b""
    while part := await read(65536):
        data += part
    return data


async def until(process, text):
    data = b""
    with anyio.fail_after(20):
        while text not in data:
            part = await process.read_stdout(65536)
            assert part, data
            data += part
    return data
