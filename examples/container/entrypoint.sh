#!/bin/sh
# The entry point of a training image.
#
# On SageMaker the platform has made /opt/ml and calls the image with `train`: then the trainer is run as it is.
# Everywhere else the arguments are those of `standpipe run`, which makes /opt/ml first.
#
# `exec` matters: the process that gets SIGTERM must be the one that heeds it.
set -eu
if [ "${1:-}" = train ]; then
    exec python3 "${TRAINER:-/opt/program/train.py}"
fi
exec standpipe run "$@"
