package jskv

import (
	"context"
	"time"

	"github.com/lockfabric/lockfabric/kv"
)

// makeTimeout bounds what making the bucket of waits adds to the first opening of a fabric.
const makeTimeout = 2 * time.Second

// Waits opens the bucket in which units of work that wait for long say what they hold, and creates it
// where that is allowed. It is kept in memory: what is lost with its servers is written again. Errors are
// those of Open; locks work without it.
func (b *Buckets) Waits(ctx context.Context) (*Bucket, error) {
	cfg, nc := b.cfg, b.Locks.nc
	cfg.Memory = true
	l := &link{clustered: nc.ConnectedClusterName() != ""}
	return openBucket(ctx, l, nc, b.Locks.js, cfg, kv.WaitsBucket(cfg.Fabric), noFloor)
}

// makeWaits creates the bucket together with the others, if that works: whoever needs it later may not
// be allowed to.
func (b *Buckets) makeWaits(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, makeTimeout)
	defer cancel()
	_, _ = b.Waits(ctx)
}
