package embedded

import (
	"net/url"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// routeAuth is what the servers of a cluster ask of each other.
type routeAuth struct {
	user, password string
	tls            tlsFiles
}

// WithClusterAuth makes the servers of a cluster ask each other for this name and
// password; all need the same. A route that names its own user,
// "nats-route://user:password@host:port", keeps it; and where all routes name the
// same one, this option can be left out. The password is needed as it is, not as
// a hash: this server gives it to the others. Needs WithCluster.
func WithClusterAuth(user, password string) Option {
	return func(c *config) error {
		switch {
		case !isName(user):
			return invalid("WithClusterAuth: name %q: give a name without spaces", user)
		case password == "":
			return invalid("WithClusterAuth: the password is empty")
		case bcryptPrefix.MatchString(password):
			return invalid("WithClusterAuth: the password is a bcrypt hash; give the password itself, the other servers ask for it")
		}
		c.routeAuth.user, c.routeAuth.password = user, password
		return nil
	}
}

// WithClusterTLS makes the servers of a cluster speak TLS with each other, and
// ask each other for a certificate that one of the authorities in caFile has
// signed. A certificate must be good for both ends of a connection and name the
// host by which the routes call this server. All files are PEM. Needs
// WithCluster; all servers need it or none.
func WithClusterTLS(certFile, keyFile, caFile string) Option {
	return func(c *config) error {
		all := certFile != "" && keyFile != "" && caFile != ""
		return set(&c.routeAuth.tls, tlsFiles{certFile, keyFile, caFile}, all, "WithClusterTLS: give three files, the certificate, its key, and the authorities")
	}
}

// apply completes the cluster's options, in which the routes are.
func (a routeAuth) apply(o *natsserver.Options) error {
	if a.tls.cert != "" {
		t, err := a.tls.load("WithClusterTLS")
		if err != nil {
			return err
		}
		o.Cluster.TLSConfig, o.Cluster.TLSTimeout = t, tlsTimeout
	}
	login, err := a.login(o.Routes)
	if err != nil || login == nil {
		return err
	}
	o.Cluster.Username = login.Username()
	o.Cluster.Password, _ = login.Password()
	for _, r := range o.Routes {
		if r.User == nil {
			r.User = login
		}
	}
	return nil
}

// login is what this server asks for: as told, or else what the routes say.
func (a routeAuth) login(routes []*url.URL) (*url.Userinfo, error) {
	if a.user != "" {
		return url.UserPassword(a.user, a.password), nil
	}
	var found *url.Userinfo
	for _, r := range routes {
		if r.User == nil {
			continue
		}
		if _, ok := r.User.Password(); !ok || r.User.Username() == "" {
			return nil, invalid("WithCluster: the route to %s names a user without a password; give both, or use WithClusterAuth", r.Host)
		}
		if found != nil && found.String() != r.User.String() {
			return nil, invalid("WithCluster: the routes name different users; say with WithClusterAuth which one this server asks for")
		}
		found = r.User
	}
	return found, nil
}
