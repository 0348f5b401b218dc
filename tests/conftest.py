"""The annotations of the whole package are checked at run time in the tests."""

from jaxtyping import install_import_hook

hook = install_import_hook("lengthwise", "checking.check")
