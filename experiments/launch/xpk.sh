#!/bin/bash
# Trains on TPU slices of a GKE cluster, by XPK. From the clone, with gcloud logged in:
#
#   export CLUSTER=... PROJECT=... ZONE=... IMAGE=... SHARED=gs://BUCKET/selfflow
#   docker build -f experiments/launch/Dockerfile -t "$IMAGE" . && docker push "$IMAGE"
#   bash experiments/launch/xpk.sh one v5litepod-16 1 experiments/quickstart.py  # a slice of 16 chips
#   bash experiments/launch/xpk.sh two v5litepod-16 2 experiments/quickstart.py --mixture.joint.batch-size 32
#
# IMAGE is a name in a registry that the cluster reads; SHARED holds runs and data. A file system that `xpk storage`
# attached to the cluster will do, too: STORAGE is its name then, and SHARED where it is mounted. What follows the
# experiment goes to `selfflow train`, and XPK_FLAGS, --spot or --dry-run say, to XPK.
set -euo pipefail
name=$1 type=$2 slices=$3
shift 3
printf -v command '%q ' exec selfflow train "$@" --devices.slices "$slices" \
    --workdir "${SHARED:?}/runs/$name" --data-dir "$SHARED/data"

# XPK begins again after a status from 127 on, which is how processes end by a signal (143: SIGTERM), and not after a
# mistake in the flags. It gives a host that is taken away ten minutes for its checkpoint.
xpk workload create --workload "$name" --cluster "${CLUSTER:?}" --project "${PROJECT:?}" --zone "${ZONE:?}" \
    --docker-image "${IMAGE:?}" ${STORAGE:+--storage "$STORAGE"} --tpu-type "$type" --num-slices "$slices" \
    --max-restarts 100 --termination-grace-period-seconds 600 --command "$command" ${XPK_FLAGS:-}
