"""The build host: base model and utterances in, admitted bundle out."""
