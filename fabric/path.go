package fabric

import "context"

// AcquirePath locks "a/b/c" in this mode ("" is Exclusive) with intents on its ancestors "a" and
// "a/b", all or nothing: IntentShared where the mode is Shared or IntentShared, else
// IntentExclusive. So a lock of "a" and locks below it keep each other out, as long as all who
// lock below "a" do it by paths: a plain Acquire("a/b/c") takes no intents, and is seen by
// nobody who locks "a". See AcquireAll for everything else.
func (m *Manager) AcquirePath(ctx context.Context, path string, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.AcquireAll(ctx, []Want{{Key: path, Mode: mode, Path: true}}, opts...)
}

// TryAcquirePath is to AcquirePath as TryAcquireAll is to AcquireAll.
func (m *Manager) TryAcquirePath(ctx context.Context, path string, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.TryAcquireAll(ctx, []Want{{Key: path, Mode: mode, Path: true}}, opts...)
}

// DoPath acquires the path, calls fn and releases it, as Do does with one lock.
func (m *Manager) DoPath(ctx context.Context, path string, mode Mode, fn func(ctx context.Context, s *Set) error, opts ...AcquireOption) error {
	return m.DoAll(ctx, []Want{{Key: path, Mode: mode, Path: true}}, fn, opts...)
}

// AcquireHierarchy locks the last level of h in this mode ("" is Exclusive), with intents on the
// levels above it, from the root down, as AcquirePath does. The order is the hierarchy's own:
// two that have common levels in opposite order can wait for each other, until their contexts
// end.
func (m *Manager) AcquireHierarchy(ctx context.Context, h Hierarchy, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.gather(ctx, gathering{ranked: true}, opts, func() ([]*level, error) { return h.plan(mode) })
}

// TryAcquireHierarchy is to AcquireHierarchy as TryAcquireAll is to AcquireAll.
func (m *Manager) TryAcquireHierarchy(ctx context.Context, h Hierarchy, mode Mode, opts ...AcquireOption) (*Set, error) {
	return m.gather(ctx, gathering{ranked: true, try: true}, opts, func() ([]*level, error) { return h.plan(mode) })
}
