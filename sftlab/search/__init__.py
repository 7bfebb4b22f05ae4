"""Search: from questions to runs that answer them; factors, design, surfaces, proposals, and what each rests on."""
