"""How chapters are run as tests."""


def pytest_collection_modifyitems(items):
    """Outputs of a cell may take as long as on a busy machine: nbval's 5 seconds are no option."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60
