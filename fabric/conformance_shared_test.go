package fabric_test

import (
	"errors"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
)

// The two modes that this floor grants; the rest of reading and writing belongs
// to what is built on it.
func TestSharedLock(t *testing.T) {
	runBehaviours(t, []behaviour{
		{"many readers at once, and a writer waits for all of them", readersThenWriter},
		{"a reader behind a queued writer waits", readerBehindWriter},
		{"readers queued together are granted together", readersTogether},
		{"try shared beside a writer is ErrHeld", tryShared},
	}, beltSite)
}

var shared = fabric.WithMode(fabric.Shared)

func readersThenWriter(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	var readers []*fabric.Lock
	var highest uint64
	for _, r := range []*fabric.Manager{m, m, s.manager(t), s.manager(t)} {
		l := acquire(t, r, key, shared)
		if l.Mode() != fabric.Shared {
			t.Errorf("mode %s", l.Mode())
		}
		highest = max(highest, l.Token())
		readers = append(readers, l)
	}
	writer := queue(t, waitContext(t), s.manager(t), key)
	for _, r := range readers {
		select {
		case g := <-writer:
			t.Fatalf("the writer got in beside a reader: %+v", g)
		default:
		}
		if err := r.Err(); err != nil {
			t.Error(err)
		}
		release(t, r)
	}
	l := granted(t, writer)
	if l.Token() <= highest {
		t.Errorf("the writer's token %d is not above the readers' %d", l.Token(), highest)
	}
	release(t, l)
}

func readerBehindWriter(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	first := acquire(t, m, key, shared)
	writer := queue(t, waitContext(t), s.manager(t), key)
	reader := queue(t, waitContext(t), m, key, shared)
	if _, err := m.TryAcquire(waitContext(t), key, shared); !errors.Is(err, fabric.ErrHeld) {
		t.Errorf("a try passed the queued writer: %v", err)
	}
	release(t, first)
	w := granted(t, writer)
	select {
	case g := <-reader:
		t.Fatalf("the reader got in beside the writer: %+v", g)
	default:
	}
	release(t, w)
	r := granted(t, reader)
	if r.Token() <= w.Token() {
		t.Errorf("the reader's token %d is not above the writer's %d", r.Token(), w.Token())
	}
	release(t, r)
}

func readersTogether(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	writer := acquire(t, m, key)
	var waits []<-chan grant
	for _, r := range []*fabric.Manager{s.manager(t), s.manager(t), m} {
		waits = append(waits, queue(t, waitContext(t), r, key, shared))
	}
	release(t, writer)
	for _, w := range waits {
		granted(t, w) // none of them is released before all are granted
	}
	if info := inspect(t, m, key); len(info.Holders) != 3 || len(info.Waiters) != 0 {
		t.Errorf("%+v", info)
	}
}

func tryShared(t *testing.T, s *site) {
	key, m := s.key(t), s.manager(t)
	l := acquire(t, s.manager(t), key)
	var held *fabric.HeldError
	if _, err := m.TryAcquire(waitContext(t), key, shared); !errors.As(err, &held) || held.Mode != fabric.Exclusive {
		t.Errorf("%v", err)
	}
	release(t, l)
	r, err := m.TryAcquire(waitContext(t), key, shared)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.manager(t).TryAcquire(waitContext(t), key); !errors.As(err, &held) || held.Mode != fabric.Shared {
		t.Errorf("%v", err)
	}
	release(t, r)
}
