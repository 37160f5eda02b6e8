#!/usr/bin/env bash
# Writes the manifests of this folder again from specs/: deploy/k8s/jobs/render.sh, from the repository's root.
set -euo pipefail
graft=${GRAFT:-.venv/bin/graft}
here=deploy/k8s/jobs
render() {
  kind=$1 name=$2
  shift 2
  "$graft" jobs render "$here/specs/$name.yaml" --kind "$kind" --name "pirate-$name" --policy "$here/pods.yaml" \
    --output "$here/$name/job.yaml" "$@"
}
render train train
render merge merge
render evaluate evaluate
render train nightly --schedule "30 2 * * *" --time-zone Etc/UTC
