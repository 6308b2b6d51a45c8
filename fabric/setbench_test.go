package fabric_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/cluster"
)

// BenchmarkOneBucket compares 64 clients with connections of their own that lock different objects below
// one bucket, as paths of three levels, with as many that take plain locks of these objects, in turns
// within one run, directly and over a coalescer. "ratio" is the median over the turns of the paths' rate divided by the plain locks'.
func BenchmarkOneBucket(b *testing.B) {
	b.Run("direct", func(b *testing.B) { oneBucket(b, benchServer(b), fabric.RoadDirect) })
	b.Run("coalesced", func(b *testing.B) {
		srv := benchServer(b)
		benchManager(b, dialed(b, srv), fabric.WithCoalescer())
		oneBucket(b, srv, fabric.RoadCoalesced)
	})
}

func dialed(b *testing.B, srv *embedded.Server) *nats.Conn {
	b.Helper()
	nc, err := links[1].dial(srv)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	return nc
}

func oneBucket(b *testing.B, srv *embedded.Server, road fabric.Road) {
	const n, turn = 64, 10 * 64
	var managers [n]*fabric.Manager
	for i := range n {
		managers[i] = benchManager(b, dialed(b, srv), fabric.WithRoad(road))
	}
	plain := func(worker int) error {
		l, err := managers[worker].Acquire(b.Context(), "plain/bucket/"+strconv.Itoa(worker))
		if err != nil {
			return err
		}
		return l.Release(b.Context())
	}
	path := func(worker int) error {
		s, err := managers[worker].AcquirePath(b.Context(), "global/bucket/"+strconv.Itoa(worker), fabric.Exclusive)
		if err != nil {
			return err
		}
		return s.Release(b.Context())
	}
	for i := range n { // each has its intents
		if err := errors.Join(plain(i), path(i)); err != nil {
			b.Fatal(err)
		}
	}
	reportRatio(b, n, turn, plain, path)
}

// BenchmarkAtomicBatch compares compare-and-set writes of k keys that are sent one after the other without
// waiting for answers, as a set does, with one atomic batch of them, in turns within one run. "ratio" is
// the median over the turns of the single writes' time divided by the batch's: above 1 the batch is faster.
func BenchmarkAtomicBatch(b *testing.B) {
	for _, storage := range []struct {
		name  string
		start func(b *testing.B) *nats.Conn
	}{
		{"file", func(b *testing.B) *nats.Conn { return batchServer(b, embedded.SyncInterval(time.Minute)) }},
		{"synced", func(b *testing.B) *nats.Conn { return batchServer(b, embedded.SyncAlways) }},
		{"replicated", func(b *testing.B) *nats.Conn {
			nc, err := cluster.Run(b, 3).Connect()
			if err != nil {
				b.Fatal(err)
			}
			return nc
		}},
	} {
		b.Run(storage.name, func(b *testing.B) {
			nc := storage.start(b)
			defer nc.Close()
			benchManager(b, nc)
			for _, k := range []int{2, 4, 16, 64} {
				b.Run(strconv.Itoa(k), func(b *testing.B) {
					w := &batchWriter{nc: nc, revs: make([]uint64, k), key: fmt.Sprintf("k%d", batches.Add(1))}
					var ratios []float64
					var single, batch time.Duration
					twice := func(write func() error) func() error { // as an acquire and its release
						return func() error { return errors.Join(write(), write()) }
					}
					for range max(b.N, 5) {
						s, t := w.timed(b, twice(w.single)), w.timed(b, twice(w.batch))
						single, batch = single+s, batch+t
						ratios = append(ratios, float64(s)/float64(t))
					}
					slices.Sort(ratios)
					b.ReportMetric(ratios[len(ratios)/2], "ratio")
					b.ReportMetric(float64(single.Microseconds())/float64(len(ratios)), "µs/single")
					b.ReportMetric(float64(batch.Microseconds())/float64(len(ratios)), "µs/batch")
					b.ReportMetric(float64(w.busy)/2/float64(len(ratios)), "busy/batch")
					b.ReportMetric(0, "ns/op")
				})
			}
		})
	}
}

func batchServer(b *testing.B, sync embedded.SyncMode) *nats.Conn {
	srv, err := embedded.Start(b.Context(), embedded.WithStoreDir(b.TempDir()), embedded.WithSync(sync), embedded.WithListen("127.0.0.1:0"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = srv.Shutdown(context.Background()) })
	nc, err := links[1].dial(srv)
	if err != nil {
		b.Fatal(err)
	}
	return nc
}

// batchWriter writes some keys of the locks bucket, all of them each time.
type batchWriter struct {
	nc   *nats.Conn
	key  string
	revs []uint64
	busy int // batches of which a member was
}

var batches atomic.Uint64

func (w *batchWriter) timed(b *testing.B, write func() error) time.Duration {
	b.Helper()
	began := time.Now()
	if err := write(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// isBusy reports the server's 10164: of replicas, and as a rule soon after another write of the key.
func isBusy(err error) bool {
	api := (*jetstream.APIError)(nil)
	return errors.As(err, &api) && api.ErrorCode == 10164
}

func (w *batchWriter) msg(i int) *nats.Msg {
	m := nats.NewMsg("$KV." + fabric.DefaultFabric + "-locks." + w.key + "." + strconv.Itoa(i))
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(w.revs[i], 10))
	m.Data = make([]byte, 170)
	return m
}

// single sends all, and again those that are busy, each after a pause.
func (w *batchWriter) single() error {
	inbox := w.nc.NewInbox()
	sub, err := w.nc.SubscribeSync(inbox + ".*")
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	send := func(i int) error {
		m := w.msg(i)
		m.Reply = inbox + "." + strconv.Itoa(i)
		return w.nc.PublishMsg(m)
	}
	for i := range w.revs {
		if err := send(i); err != nil {
			return err
		}
	}
	for left := len(w.revs); left > 0; {
		m, err := sub.NextMsg(patience)
		if err != nil {
			return err
		}
		i, _ := strconv.Atoi(m.Subject[len(inbox)+1:])
		switch seq, err := acked(m); {
		case err == nil:
			w.revs[i] = seq
			left--
		case !isBusy(err):
			return err
		default:
			time.Sleep(200 * time.Microsecond)
			if err := send(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// batch sends all as one, and each by itself where one of them is busy. Somebody who has to know what
// became of the batch would read each of them before.
func (w *batchWriter) batch() error {
	id := fmt.Sprintf("b%d", batches.Add(1))
	for i := range w.revs {
		m := w.msg(i)
		m.Header.Set("Nats-Batch-Id", id)
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < len(w.revs)-1 {
			if err := w.nc.PublishMsg(m); err != nil {
				return err
			}
			continue
		}
		m.Header.Set("Nats-Batch-Commit", "1")
		reply, err := w.nc.RequestMsg(m, patience)
		if err != nil {
			return err
		}
		last, err := acked(reply)
		if isBusy(err) {
			w.busy++
			return w.single()
		}
		if err != nil {
			return err
		}
		for i := range w.revs {
			w.revs[i] = last - uint64(len(w.revs)-1-i)
		}
	}
	return nil
}

func acked(m *nats.Msg) (uint64, error) {
	var ack struct {
		Seq   uint64              `json:"seq"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil {
		return 0, err
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	return ack.Seq, nil
}
