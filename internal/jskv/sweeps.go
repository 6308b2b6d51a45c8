package jskv

import "context"

// Sweeps returns how often somebody has begun to collect dead entries in the fabric.
// Errors are those of a read.
func (b *Buckets) Sweeps(ctx context.Context) (uint64, error) {
	m, _, err := b.note(ctx, func(*meta) bool { return false })
	return m.Sweeps, err
}

// BeginSweep notes that the caller begins to collect dead entries, unless somebody
// else has since there were n such sweeps. It returns their number now. Errors are
// those of a write.
func (b *Buckets) BeginSweep(ctx context.Context, n uint64) (mine bool, now uint64, err error) {
	m, _, err := b.note(ctx, func(m *meta) bool {
		mine = m.Sweeps == n
		if mine {
			m.Sweeps++
		}
		return mine
	})
	return mine && err == nil, m.Sweeps, err
}
