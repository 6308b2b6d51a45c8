package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// logAdapter gives the server's log to slog, and remembers the first fatal
// message: the server reports that it can't start in no other way.
type logAdapter struct {
	out  *slog.Logger // nil: silent
	once sync.Once
	// fatal is closed once reason is set.
	fatal  chan struct{}
	reason string
}

var _ natsserver.Logger = (*logAdapter)(nil)

func newLogAdapter(out *slog.Logger) *logAdapter {
	return &logAdapter{out: out, fatal: make(chan struct{})}
}

// install attaches the adapter. Protocol traces stay off: they would put lock
// owners and payloads into the log.
func (l *logAdapter) install(s *natsserver.Server) {
	debug := l.out != nil && l.out.Enabled(context.Background(), slog.LevelDebug)
	s.SetLoggerV2(l, debug, false, false)
}

func (l *logAdapter) Noticef(format string, v ...any) { l.log(slog.LevelInfo, format, v) }
func (l *logAdapter) Warnf(format string, v ...any)   { l.log(slog.LevelWarn, format, v) }
func (l *logAdapter) Errorf(format string, v ...any)  { l.log(slog.LevelError, format, v) }
func (l *logAdapter) Debugf(format string, v ...any)  { l.log(slog.LevelDebug, format, v) }
func (l *logAdapter) Tracef(format string, v ...any)  { l.log(slog.LevelDebug-4, format, v) }

// Fatalf is called where the server's own command would end the process.
func (l *logAdapter) Fatalf(format string, v ...any) {
	l.once.Do(func() {
		l.reason = fmt.Sprintf(format, v...)
		close(l.fatal)
	})
	l.log(slog.LevelError, format, v)
}

func (l *logAdapter) log(level slog.Level, format string, v []any) {
	ctx := context.Background()
	if l.out == nil || !l.out.Enabled(ctx, level) {
		return
	}
	l.out.Log(ctx, level, fmt.Sprintf(format, v...))
}
