"""Files for deployment and the checks of them."""
