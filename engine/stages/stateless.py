"""What a stage without state has in common: nothing to snapshot, restore or release."""

from collections.abc import Mapping

from engine.stage import StageState

__all__ = ["Stateless"]


class Stateless:
    """The checkpoint half of ``engine.stage.Transform`` for stages that keep nothing between batches."""

    concurrency = 1

    async def snapshot(self) -> StageState | None:
        """Nothing to remember."""
        return None

    async def restore(self, state: StageState) -> None:
        """Nothing was remembered."""

    async def release(self, state: StageState) -> None:
        """No file to give up."""

    def statistics(self) -> Mapping[str, int]:
        """No counter of its own."""
        return {}

    async def close(self) -> None:
        """Nothing is held."""
