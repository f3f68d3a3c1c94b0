import torch

from mpisign.workload import cache


def test_the_largest_cache_is_told_by_linux(tmp_path):
    assert cache.largest_cache(tmp_path) == cache.UNKNOWN
    for index, size in enumerate(("32K\n", "1M\n", "512K\n", "plenty\n")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size)
    assert cache.largest_cache(tmp_path) == 2**20
    flush = cache.Flush(torch.device("cpu"))
    flush()
    assert flush.bytes == cache.largest_cache() >= 2**15
