"""What the same tokens would cost at an API price the user gives: one line of comparison, no judgement of quality."""

from decimal import Decimal, InvalidOperation

from tiercast_plan.cost import CostReport
from tiercast_profiles.document import Strict
from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import Metrics

SIX_PLACES = Decimal("0.000001")


class ApiPrice(Strict):
    """US dollars per million tokens asked by somebody else, input and output apart."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal


class ApiComparison(Strict):
    """The user's price on this run's mix of tokens, and the run's own cost as a multiple of it."""

    price: ApiPrice
    api_usd_per_mtok: Decimal
    own_usd_per_mtok: Decimal
    own_of_api_ratio: Decimal


def parse_api_price(text: str) -> ApiPrice:
    """``0.30`` for every token, or ``0.15,0.60`` for input and output.

    Raises:
        BadInput: neither form, or not above zero.
    """
    try:
        prices = [Decimal(part.strip()) for part in text.split(",")]
    except InvalidOperation:
        prices = []
    if len(prices) not in (1, 2) or not all(price.is_finite() and price > 0 for price in prices):
        raise BadInput(f"API price {text!r}: give one price above 0, or input,output, in USD per million tokens")
    return ApiPrice(input_usd_per_mtok=prices[0], output_usd_per_mtok=prices[-1])


def against_api(cost: CostReport, metrics: Metrics, price: ApiPrice) -> ApiComparison:
    """The cost of a run beside the price for the same mix of input and output tokens."""
    output = Decimal(str(metrics.output_tokens_per_s.value)) / Decimal(str(metrics.total_tokens_per_s.value))
    blended = price.input_usd_per_mtok * (1 - output) + price.output_usd_per_mtok * output
    own = cost.usd_per_mtok["total"].value
    return ApiComparison(
        price=price,
        api_usd_per_mtok=blended.quantize(SIX_PLACES),
        own_usd_per_mtok=own,
        own_of_api_ratio=(own / blended).quantize(SIX_PLACES),
    )
