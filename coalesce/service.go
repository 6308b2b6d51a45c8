package coalesce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// ServiceName is the name of the micro service under which owners are found, as by `nats micro ls`.
const ServiceName = "lockfabric"

// QueueGroup is the queue group of those who answer hellos.
const QueueGroup = "q"

// The bounds of an owner.
const (
	maxSessions   = 1 << 16
	maxOperations = 1 << 18 // under way, of all sessions
	maxCredit     = 1024    // operations of one session that neither wait nor have ended
	maxPass       = 256     // operations of one session that are taken before the others have their turn
	maxFrames     = 32      // of one session that wait for their turn
	maxInbox      = 16384   // frames that wait in the subscription
	maxInboxBytes = 32 << 20
)

// Times of an owner.
const (
	beatBusy     = 250 * time.Millisecond // while somebody waits
	beatIdle     = 5 * time.Second
	receiptAfter = 20 * time.Millisecond // how long an acknowledgement waits for company
	drainTime    = time.Second           // of what is under way at Close
	heardWithin  = 5 * time.Second       // see Heard
)

// ServiceConfig is what the owner's side of a shard is made of, for one term. All fields but
// Rank, Version, Metadata and Logger are needed.
type ServiceConfig struct {
	Conn   *nats.Conn
	Fabric string
	Shard  int
	Stamp  Stamp
	// Term is the token of the shard's ownership, and Lease the id of the lease that it stands
	// under. When that lease's tombstone is committed the term is over.
	Term  uint64
	Lease string
	Rank  int
	// Version is the library's, as "1.2.3"; what is no version is 0.0.0-dev.
	Version  string
	Metadata map[string]string // shown beside the service's own
	// Doer carries the operations out: the engine of this process.
	Doer engine.Doer
	// Writes counts the committed writes of Doer, for the statistics. It may be nil.
	Writes func() uint64
	// Batched counts the writes of Doer that were sent in atomic batches, likewise.
	Batched func() uint64
	// Known returns the newest committed record of a key that is known, without asking, as the engine's does. nil:
	// no turns are passed on.
	Known func(key string) (rec *record.Record, rev uint64, ok bool)
	// Valid reports whether Lease is valid by this process's clock. It is asked before work is
	// taken and before each write, and must be quick.
	Valid func() bool
	// LeaseAlive reports whether a client's lease exists and has no tombstone, by one read.
	LeaseAlive func(ctx context.Context, lease string) (bool, error)
	Logger     *slog.Logger

	inbox int // maxInbox, or less in tests
}

// Service serves a shard for one term. It is safe for concurrent use.
type Service struct {
	cfg            ServiceConfig
	inboxes        string
	micro          micro.Service
	ctx            context.Context
	cancel         context.CancelFunc
	wg             sync.WaitGroup
	wake           chan struct{}
	readSlots      chan struct{} // taken by those who read a lease
	stopped        atomic.Bool   // nothing is written for others any more
	writesAtStart  uint64        // Writes at the beginning
	batchesAtStart uint64        // Batched then

	mu       sync.Mutex
	closing  bool
	sessions map[string]*session
	ready    []*session // with frames that are not taken yet
	unread   int        // operations in these
	dirty    []*session // with something to send
	resumed  []*leaseCheck
	paces    map[string]*pace // by key
	waiting  int              // acquires that stand in a queue
	underWay int              // operations that neither wait nor have ended
	drained  chan struct{}
	stats    ServiceStats
}

// ServiceStats counts what a service has done since it was made.
type ServiceStats struct {
	Frames     uint64 `json:"frames"`
	Operations uint64 `json:"operations"`
	Grants     uint64 `json:"grants"`
	Turns      uint64 `json:"turns"` // locks that were passed on before it was written
	Replies    uint64 `json:"replies"`
	Dropped    uint64 `json:"dropped"` // frames: malformed, late, repeated, or from nobody
	Refused    uint64 `json:"refused"` // operations that were not done
	Writes     uint64 `json:"writes"`  // of records, what this process wants itself included
	// WritesPerOperation is Writes by Operations, 0 before the first.
	WritesPerOperation float64 `json:"writes_per_operation"`
	// Batched is how many writes were sent in atomic batches.
	Batched uint64 `json:"writes_in_batches"`

	Sessions int `json:"sessions"`
	Waiting  int `json:"waiting"`
	UnderWay int `json:"under_way"`
	Limit    int `json:"limit"` // of UnderWay
}

// Serve begins to serve. Close ends it.
func Serve(cfg ServiceConfig) (*Service, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.inbox = cmp.Or(cfg.inbox, maxInbox)
	s := &Service{
		cfg: cfg, inboxes: inboxes(cfg.Fabric, cfg.Shard), wake: make(chan struct{}, 1), readSlots: make(chan struct{}, leaseReads), sessions: map[string]*session{},
		paces: map[string]*pace{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if cfg.Writes != nil {
		s.writesAtStart = cfg.Writes()
	}
	if cfg.Batched != nil {
		s.batchesAtStart = cfg.Batched()
	}
	if err := s.register(); err != nil {
		s.cancel()
		return nil, err
	}
	s.wg.Go(s.loop)
	s.wg.Go(s.janitor)
	return s, nil
}

// register announces the service and subscribes to its subjects.
func (s *Service) register() error {
	cfg := s.cfg
	meta := map[string]string{
		"fabric": cfg.Fabric, "shard": strconv.Itoa(cfg.Shard), "term": strconv.FormatUint(cfg.Term, 10),
		"stamp": cfg.Stamp.String(), "frames": fmt.Sprintf("%d-%d", frameVersion, frameVersion), "rank": strconv.Itoa(cfg.Rank),
	}
	maps.Copy(meta, cfg.Metadata)
	svc, err := micro.AddService(cfg.Conn, micro.Config{
		Name: ServiceName, Version: semver(cfg.Version), Description: "carries out lock operations of a fabric for others",
		Metadata:     meta,
		StatsHandler: func(*micro.Endpoint) any { return s.Stats() },
	})
	if err != nil {
		return fmt.Errorf("coalesce: service: %w", err)
	}
	s.micro = svc
	limits := micro.WithEndpointPendingLimits(cfg.inbox, maxInboxBytes)
	err = svc.AddEndpoint("op", micro.HandlerFunc(s.takeFrame), limits,
		micro.WithEndpointSubject(opSubject(cfg.Fabric, cfg.Shard, cfg.Term)), micro.WithEndpointQueueGroupDisabled())
	if err == nil {
		err = svc.AddEndpoint("hello", micro.HandlerFunc(s.takeHello), limits,
			micro.WithEndpointSubject(HelloSubject(cfg.Fabric, cfg.Shard)), micro.WithEndpointQueueGroup(QueueGroup))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("coalesce: service: %w", err), svc.Stop())
	}
	return nil
}

// takeFrame is called for each frame. It answers nobody: the loop does, on subjects of its own making.
func (s *Service) takeFrame(req micro.Request) {
	manager := managerOf(req.Reply(), s.inboxes)
	f, err := frame{}, errMalformed
	if manager != "" {
		f, err = decodeFrame(req.Data())
	}
	s.mu.Lock()
	if s.stats.Frames++; err != nil || !s.enqueueFrame(manager, f) {
		s.stats.Dropped++
	}
	s.mu.Unlock()
	s.wakeLoop()
}

// takeHello answers who is there.
func (s *Service) takeHello(req micro.Request) {
	if managerOf(req.Reply(), s.inboxes) == "" || !s.mayWrite() {
		return
	}
	b := s.beat()
	_ = req.Respond(b.append(nil))
}

// nudge has the loop look.
func (s *Service) wakeLoop() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// entitled reports whether this process may still write for others.
func (s *Service) mayWrite() bool { return !s.stopped.Load() && s.cfg.Valid() }

// Stats returns the counters.
func (s *Service) Stats() ServiceStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Sessions, st.Waiting, st.UnderWay, st.Limit = len(s.sessions), s.waiting, s.underWay, maxOperations
	if s.cfg.Writes != nil {
		st.Writes = s.cfg.Writes() - s.writesAtStart
	}
	if s.cfg.Batched != nil {
		st.Batched = s.cfg.Batched() - s.batchesAtStart
	}
	if st.Operations > 0 {
		st.WritesPerOperation = float64(st.Writes) / float64(st.Operations)
	}
	return st
}

// Active returns how many clients have sent something since then, or have something that is under way or waits.
func (s *Service) Active(since time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.sessions {
		if c.isBusy() || c.lastUsed.After(since) {
			n++
		}
	}
	return n
}

// ErrUnheard is why an owner is of no use: its user may not subscribe to what clients send, or not answer them. Give it
// the rights of a coalescer.
var ErrUnheard = errors.New("coalesce: clients can't reach this owner, or it can't reach them")

// Heard returns nil once a frame has reached this owner and its answer and a beat have come back, and ErrUnheard if they
// do not: a server does not tell who asks for it that a subscription is refused.
func (s *Service) Heard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, heardWithin)
	defer cancel()
	nc, me := s.cfg.Conn, "self"+nuid.Next()
	in := make(chan *nats.Msg, 16)
	defer func() {
		s.mu.Lock()
		delete(s.sessions, me)
		s.mu.Unlock()
	}()
	box := inbox(s.cfg.Fabric, s.cfg.Shard, me)
	for _, subject := range []string{box + ">", BeatSubject(s.cfg.Fabric, s.cfg.Shard)} {
		sub, err := nc.ChanSubscribe(subject, in)
		if err != nil {
			return err
		}
		defer func() { _ = sub.Unsubscribe() }()
	}
	b, f := s.beat(), frame{ack: true, stamp: s.cfg.Stamp, seq: 1}
	err := errors.Join(nc.Publish(BeatSubject(s.cfg.Fabric, s.cfg.Shard), b.append(nil)),
		nc.PublishRequest(HelloSubject(s.cfg.Fabric, s.cfg.Shard), box+"h", nil),
		nc.PublishRequest(opSubject(s.cfg.Fabric, s.cfg.Shard, s.cfg.Term), box+"f.1", f.append(nil)))
	if err != nil {
		return err
	}
	for beaten, answered := false, false; !beaten || !answered; {
		select {
		case <-ctx.Done():
			return ErrUnheard
		case m := <-in:
			if m.Header.Get("Status") != "" {
				return ErrUnheard // nobody listens
			}
			beaten = beaten || !strings.HasPrefix(m.Subject, box)
			answered = answered || m.Subject == box+"r"
		}
	}
	return nil
}

// Close ends the service: it takes nothing more, gives what is under way a moment to end, tells
// everybody, and leaves those who wait to whoever comes next: they stand in the records. The
// ownership can be given up when it returns. An error says that not everybody could be told.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closing = true
	drained := make(chan struct{})
	if s.underWay == 0 {
		close(drained)
	} else {
		s.drained = drained
	}
	s.mu.Unlock()
	t := time.NewTimer(drainTime)
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C:
	case <-ctx.Done():
	}
	s.stopped.Store(true)
	for _, r := range s.unanswered() {
		s.cfg.Doer.Withdraw(r, engine.ErrElsewhere)
	}
	s.cancel()
	s.wg.Wait()
	s.flush()
	b := s.beat()
	b.bye = true
	err := s.cfg.Conn.Publish(BeatSubject(s.cfg.Fabric, s.cfg.Shard), b.append(nil))
	if s.cfg.Conn.IsClosed() {
		return err
	}
	fctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	return errors.Join(err, s.micro.Stop(), s.cfg.Conn.FlushWithContext(fctx))
}
