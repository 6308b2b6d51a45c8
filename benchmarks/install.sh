#!/bin/sh
# Installs what is measured beside lockfabric and etcd, on Debian. The services that come with it are not needed.
set -eu
apt-get update
apt-get install --no-install-recommends -y redis-server zookeeper openjdk-17-jre-headless
