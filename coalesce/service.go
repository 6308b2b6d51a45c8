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

// ServiceName is the name of the micro service of owners. `nats micro ls` shows it.
const ServiceName = "lockfabric"

// QueueGroup is the queue group of the owners that answer hellos.
const QueueGroup = "q"

// The bounds of an owner.
const (
	maxSessions   = 1 << 16
	maxOperations = 1 << 18 // under way, in all sessions
	maxCredit     = 1024    // operations of one session that neither wait nor have ended
	maxPass       = 256     // operations of one session in one pass of the loop
	maxFrames     = 32      // frames of one session that wait for a pass
	maxInbox      = 16384   // frames that wait in the subscription
	maxInboxBytes = 32 << 20
)

// Times of an owner.
const (
	beatBusy     = 250 * time.Millisecond // while operations wait or are under way
	beatIdle     = 5 * time.Second
	receiptAfter = 20 * time.Millisecond // how long a reply waits for more outcomes
	drainTime    = time.Second           // how long Close waits for operations under way
	heardWithin  = 5 * time.Second       // see Heard
)

// ServiceConfig configures the owner of a shard for one term. All fields but
// Rank, Version, Metadata, Writes, Batched, Known and Logger are required.
type ServiceConfig struct {
	Conn   *nats.Conn
	Fabric string
	Shard  int
	Stamp  Stamp
	// Term is the token of the shard's hold, and Lease is the id of that hold's lease.
	// The term is over when the lease's tombstone is committed.
	Term  uint64
	Lease string
	Rank  int
	// Version is the library's version, such as "1.2.3". Anything else is shown as 0.0.0-dev.
	Version  string
	Metadata map[string]string // shown with the service's own
	// Doer carries out the operations: the engine of this process.
	Doer engine.Doer
	// Writes returns the number of Doer's committed writes, for the statistics. It may be nil.
	Writes func() uint64
	// Batched returns the number of Doer's writes that were sent in atomic batches. It may be nil.
	Batched func() uint64
	// Known returns the newest committed record of a key that this process knows, without a request. See engine.Engine.Known.
	// If it is nil, no turns are passed on.
	Known func(key string) (rec *record.Record, rev uint64, ok bool)
	// Valid reports whether Lease is valid by this process's clock. It is called before operations are
	// taken and before each write, and must be quick.
	Valid func() bool
	// LeaseAlive reports, by one read, whether a client's lease exists and has no tombstone.
	LeaseAlive func(ctx context.Context, lease string) (bool, error)
	Logger     *slog.Logger

	inbox int // maxInbox, or less in tests
}

// Service is the owner of a shard for one term. It is safe for concurrent use.
type Service struct {
	cfg            ServiceConfig
	inboxes        string
	micro          micro.Service
	ctx            context.Context
	cancel         context.CancelFunc
	wg             sync.WaitGroup
	wake           chan struct{}
	readSlots      chan struct{} // limits the reads of leases at the same time
	stopped        atomic.Bool   // nothing is written for others any more
	writesAtStart  uint64        // value of Writes in Serve
	batchesAtStart uint64        // value of Batched in Serve

	mu       sync.Mutex
	closing  bool
	sessions map[string]*session
	ready    []*session // sessions with frames that were not taken yet
	unread   int        // operations in these frames
	dirty    []*session // sessions with something to send
	resumed  []*leaseCheck
	paces    map[string]*pace // by key
	waiting  int              // acquires that wait in a queue
	underWay int              // operations that neither wait nor have ended
	drained  chan struct{}
	stats    ServiceStats
}

// ServiceStats counts what a service has done since it was made.
type ServiceStats struct {
	Frames     uint64 `json:"frames"`
	Operations uint64 `json:"operations"`
	Grants     uint64 `json:"grants"`
	Turns      uint64 `json:"turns"` // locks that were passed on before the write
	Replies    uint64 `json:"replies"`
	Dropped    uint64 `json:"dropped"` // frames that were malformed, late, repeated, or from an unknown sender
	Refused    uint64 `json:"refused"` // operations that were not done
	Writes     uint64 `json:"writes"`  // committed writes, also for this process's own operations
	// WritesPerOperation is Writes divided by Operations, or 0 before the first operation.
	WritesPerOperation float64 `json:"writes_per_operation"`
	// Batched is the number of writes that were sent in atomic batches.
	Batched uint64 `json:"writes_in_batches"`

	Sessions int `json:"sessions"`
	Waiting  int `json:"waiting"`
	UnderWay int `json:"under_way"`
	Limit    int `json:"limit"` // of UnderWay
}

// Serve starts a service. Close ends it.
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

// takeFrame is called for each frame. It sends no answer. The loop does, to subjects that this package makes itself.
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

// takeHello answers a hello with a beat.
func (s *Service) takeHello(req micro.Request) {
	if managerOf(req.Reply(), s.inboxes) == "" || !s.mayWrite() {
		return
	}
	b := s.beat()
	_ = req.Respond(b.append(nil))
}

// wakeLoop makes the loop run once more.
func (s *Service) wakeLoop() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// mayWrite reports whether this process may still write for others.
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

// Active returns the number of clients that have sent a frame after since, or have an operation that waits or is under way.
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

// ErrUnheard says that an owner is useless: its NATS user may not subscribe to what clients send, or may not answer them. Give the
// user the rights of a coalescer.
var ErrUnheard = errors.New("coalesce: clients can't reach this owner, or it can't reach them")

// Heard sends this owner a frame and a beat. It returns nil once the beat and the frame's answer have come back, and ErrUnheard if they
// do not. Heard is needed because a subscriber does not learn from its server that a subscription is refused.
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
				return ErrUnheard // no subscriber
			}
			beaten = beaten || !strings.HasPrefix(m.Subject, box)
			answered = answered || m.Subject == box+"r"
		}
	}
	return nil
}

// Close ends the service. It takes nothing more, waits a moment for operations under way, and
// tells all clients. The next owner goes on with the operations that wait, since they are in the records. When Close returns,
// the caller can release the shard. An error says that not all clients could be told.
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
