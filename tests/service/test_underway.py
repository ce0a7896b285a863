import asyncio

import pytest

from service.underway import UnderWay


async def test_it_is_idle_once_the_last_call_is_over_however_it_ends():
    under_way = UnderWay()
    await under_way.wait_idle()
    with under_way:
        with pytest.raises(OSError, match="gone"), under_way:
            raise OSError("gone")
        idle = asyncio.ensure_future(under_way.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
    await idle
