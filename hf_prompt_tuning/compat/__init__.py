"""Every difference between versions of the libraries that this package runs on, a module for each library.

Nothing else in the package asks for a version, or for a name that only some versions have. Each function says which
versions it is for, so that it can be deleted when they are no longer admitted.
"""

from .newest import log_untested

log_untested()  # Python imports this file once in a process, with the first name that needs a model
