"""The build host: base model and utterances in, admitted bundle out."""

import logging

# Imported along with PEFT, it warns of a faster kernel on the hub that it did not find.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
