"""The keeper: one small process per home that is the parent of all long-lived children. Standard library only, few imports: it must fork fast."""
