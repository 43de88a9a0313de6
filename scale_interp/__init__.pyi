from . import errors as errors
from . import viz as viz
from .adapters import *
from .attribution import *
from .data import *
from .evaluation import *
from .execution import *
from .interventions import *
from .models import *
