"""From predictions to a decision: goals, the choice among settings, schedules that follow the critical batch size."""
