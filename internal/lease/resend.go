package lease

import "context"

// renewing marks the context of a renewal.
type renewing struct{}

// Renewing reports whether a request with this context is part of a renewal, which
// goes before everything else.
func Renewing(ctx context.Context) bool { return ctx.Value(renewing{}) != nil }

// Resend has a renewal that is under way sent again at once: what was sent on a
// connection that is gone may be lost, or its answer. It returns when the repetition
// is answered or given up, the renewal has ended, or ctx has. Where no renewal is
// under way there is nothing to do.
func (l *Lease) Resend(ctx context.Context) {
	l.mu.Lock()
	if l.abort == nil {
		l.mu.Unlock()
		return
	}
	over := make(chan struct{})
	l.resends = append(l.resends, over)
	if l.moot != nil {
		l.moot()
	}
	select {
	case l.back <- struct{}{}:
	default: // it is going to look
	}
	l.mu.Unlock()
	select {
	case <-over:
	case <-ctx.Done():
	}
}

func closeAll(list []chan struct{}) {
	for _, c := range list {
		close(c)
	}
}
