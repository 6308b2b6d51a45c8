package embedded

import "github.com/nats-io/nats.go"

// SyncsAlways reports what the server itself says about its store.
func (s *Server) SyncsAlways() bool { return s.srv.JetStreamConfig().SyncAlways }

// InternalKey is what Connect uses.
func (s *Server) InternalKey() nats.Option { return s.identity.option() }
