"""How each row of the study gets its learning rate: one rule for all, on one grid, by held-out training images.

First at the short budget: the grid's middle, and then the next rate beyond the best until that lies between two worse
ones. The best one is taken for that budget. The two best are tried again at the middle budget, and there, too, the next
rate beyond the best until that lies between two worse ones; it is taken for the middle budget and for the long one
(successive halving, Jamieson and Talwalkar 2016, with two rungs), because what is best for a few steps need not be best
for many.
"""

RATES = (0.0002, 0.0006, 0.002, 0.006, 0.018, 0.054)  # SOLVER.BASE_LR
FIRST_RATES = (0.002, 0.006)
SHORT, MIDDLE, LONG = 5, 20, 80  # budgets, epochs


def wanted_rates(short, middle):
    """What a row has still to be tried with.

    Args:
        short, middle: learning rate -> accuracy, of the runs at these budgets.

    Returns:
        list: (learning rate, epochs).
    """
    if missing := missing_rates(short, FIRST_RATES):
        return [(rate, SHORT) for rate in missing]
    return [(rate, MIDDLE) for rate in missing_rates(middle, _best_two(short))]


def chosen_rate(short, middle, epochs):
    """The learning rate of a row for a budget, None if it is not known yet. Arguments as :func:`wanted_rates`."""
    if missing_rates(short, FIRST_RATES):
        return None
    if epochs == SHORT:
        return max(short, key=short.get)
    return None if missing_rates(middle, _best_two(short)) else max(middle, key=middle.get)


def missing_rates(found, first):
    """What is to be tried next of one budget: the ``first`` learning rates, then those next to the best one."""
    if missing := [rate for rate in first if rate not in found]:
        return missing
    place = RATES.index(max(found, key=found.get))
    return [rate for rate in RATES[max(0, place - 1) : place + 2] if rate not in found]


def _best_two(found):
    return sorted(found, key=found.get, reverse=True)[:2]
