"""`python -m seqrec_prompt` is `seqrec-prompt`."""

from seqrec_prompt.cli import main

raise SystemExit(main())
